//! The parameters of `mining.submit`.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, SeqAccess, Visitor};

use super::reply::{BAD_EXTRANONCE2, BAD_PARAMS, Fault, JOB_NOT_FOUND};
use super::request::{Text, hex, unprefixed, word};

/// The parameters as texts: user, job, extranonce2, ntime, nonce and, from miners that roll versions, version bits.
#[derive(Debug)]
pub(crate) struct SubmitParams<'a> {
    /// User name.
    pub(crate) user: Text<'a>,
    job: Text<'a>,
    extranonce2: Text<'a>,
    ntime: Text<'a>,
    nonce: Text<'a>,
    version_bits: Option<Text<'a>>,
}

/// The parameters as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Job id.
    pub(crate) job: u64,
    /// Extranonce2, its 8 bytes read as a big-endian integer.
    pub(crate) extranonce2: u64,
    /// Block time, seconds.
    pub(crate) ntime: u32,
    /// Nonce.
    pub(crate) nonce: u32,
    /// Version bits, if there were any.
    pub(crate) version_bits: Option<u32>,
}

impl SubmitParams<'_> {
    /// The numbers. Where a text stands for a number its form does not matter: leading zeros, case, `0x`. Extranonce2 is
    /// a string of bytes: its size was agreed, and another one would have been another coinbase.
    pub(crate) fn share(&self) -> Result<Share, Fault> {
        let number = |text: &str| word(text).ok_or(BAD_PARAMS);
        if unprefixed(&self.extranonce2).len() != 2 * sluice_mining::EXTRANONCE2_SIZE {
            return Err(BAD_EXTRANONCE2);
        }
        Ok(Share {
            // A job of another pool, from before the miner switched: it is not known here.
            job: hex(&self.job, 16).ok_or(JOB_NOT_FOUND)?,
            extranonce2: hex(&self.extranonce2, 16).ok_or(BAD_EXTRANONCE2)?,
            ntime: number(&self.ntime)?,
            nonce: number(&self.nonce)?,
            version_bits: match &self.version_bits {
                Some(bits) if !bits.is_empty() => Some(number(bits)?),
                _ => None,
            },
        })
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for SubmitParams<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsParams;
        impl<'de> Visitor<'de> for AsParams {
            type Value = SubmitParams<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("5 or 6 strings")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut next = || seq.next_element()?.ok_or_else(|| A::Error::custom("5 or 6 strings are right"));
                let [user, job, extranonce2, ntime, nonce] = [next()?, next()?, next()?, next()?, next()?];
                let version_bits = seq.next_element::<Option<Text<'de>>>()?.flatten();
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(SubmitParams { user, job, extranonce2, ntime, nonce, version_bits })
            }
        }
        deserializer.deserialize_seq(AsParams)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn share(params: &str) -> Option<Result<Share, Fault>> {
        serde_json::from_str::<SubmitParams<'_>>(params).ok().map(|params| params.share())
    }

    fn good(extranonce2: u64, ntime: u32, nonce: u32, version_bits: Option<u32>) -> Option<Result<Share, Fault>> {
        Some(Ok(Share { job: 0x6a, extranonce2, ntime, nonce, version_bits }))
    }

    #[test]
    fn five_or_six_parameters() {
        let five = r#"["u","6a","0000000000000001","66610000","1a2b3c4d"]"#;
        assert_eq!(share(five), good(1, 0x6661_0000, 0x1a2b_3c4d, None));
        let six = r#"["u","6a","0000000000000001","66610000","1a2b3c4d","00e2a000"]"#;
        assert_eq!(share(six), good(1, 0x6661_0000, 0x1a2b_3c4d, Some(0x00e2_a000)));
        assert_eq!(share(r#"["u","6a","0000000000000001","66610000","1a2b3c4d",null]"#), share(five));
        assert_eq!(share(r#"["u","6a","0000000000000001","66610000","1a2b3c4d",""]"#), share(five));
        assert_eq!(share(r#"["u","6a","0000000000000001","66610000","1a2b3c4d","00e2a000",7]"#), share(six));
        for bad in [r#"["u","6a","0000000000000001","66610000"]"#, "[]", "{}", "null", r#"["u",1,"0","0","0"]"#] {
            assert_eq!(share(bad), None, "{bad}");
        }
    }

    #[test]
    fn hex_case_prefix_and_leading_zeros_do_not_matter() {
        let one = share(r#"["u","0x6A","0x00000000000000AB","0X66610000","b"]"#);
        assert_eq!(one, good(0xab, 0x6661_0000, 0xb, None));
        assert_eq!(one, share(r#"["u","006a","00000000000000ab","66610000","0000000B"]"#));
    }

    #[test]
    fn what_is_no_number_is_told_apart() {
        let fault = |params: &str| share(params).unwrap().unwrap_err();
        assert_eq!(fault(r#"["u","job-7","0000000000000001","1","1"]"#), JOB_NOT_FOUND);
        assert_eq!(fault(r#"["u","6a","01","1","1"]"#), BAD_EXTRANONCE2);
        assert_eq!(fault(r#"["u","6a","000000000000000g","1","1"]"#), BAD_EXTRANONCE2);
        assert_eq!(fault(r#"["u","6a","0000000000000001","123456789","1"]"#), BAD_PARAMS);
        assert_eq!(fault(r#"["u","6a","0000000000000001","1","-1"]"#), BAD_PARAMS);
        assert_eq!(fault(r#"["u","6a","0000000000000001","1","1","zz"]"#), BAD_PARAMS);
    }

    proptest! {
        #[test]
        fn any_strings_are_read_or_refused(fields: Vec<String>) {
            let _ = share(&serde_json::to_string(&fields).unwrap());
        }
    }
}
