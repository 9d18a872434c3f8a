//! Records of earlier schema versions: brought to the newest one, step by step, as they are read.
//!
//! A field that is added with a meaning for its absence (0, empty) needs no new version: readers see it absent in older
//! records. A new version is for a field whose meaning changes, or that moves: then [`STEPS`] gets one more function,
//! which is never changed once it is released, and `tests/golden` the bytes of each kind of record that changes.
//! Coordinates mean the same in every version: [`crate::Head`] reads them without a step.

use crate::DecodeError;
use crate::v1::Envelope;

/// Makes a record of one version what the next version would have written.
pub(crate) type Step = fn(&mut Envelope) -> Result<(), String>;

/// The step from version 1 to 2, from 2 to 3, and so on: none so far.
const STEPS: &[Step] = &[];

/// Version of the schema that this build writes, and the newest that it reads: one more than there are steps.
pub const SCHEMA: u32 = STEPS.len() as u32 + 1;

/// Brings a record of any released version to the newest one.
///
/// # Errors
/// If its version is none of them, or a step cannot be made.
pub(crate) fn to_newest(envelope: &mut Envelope) -> Result<(), DecodeError> {
    climb(STEPS, envelope)
}

#[inline]
fn climb(steps: &[Step], envelope: &mut Envelope) -> Result<(), DecodeError> {
    let newest = steps.len() as u32 + 1;
    let version = envelope.schema;
    if version == newest {
        return Ok(());
    }
    let left = version.checked_sub(1).and_then(|done| steps.get(done as usize..)).filter(|left| !left.is_empty());
    for step in left.ok_or(DecodeError::Schema(version))? {
        step(envelope).map_err(|what| DecodeError::Upgrade { version, what })?;
    }
    envelope.schema = newest;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Coordinates, Tick};
    use crate::{Body, EventTime};

    fn double(envelope: &mut Envelope) -> Result<(), String> {
        match &mut envelope.body {
            Some(Body::Tick(tick)) if tick.gateway == 0 => Err("a tick of no gateway".into()),
            Some(Body::Tick(tick)) => {
                tick.job_clock *= 2;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn add_one(envelope: &mut Envelope) -> Result<(), String> {
        if let Some(Body::Tick(tick)) = &mut envelope.body {
            tick.job_clock += 1;
        }
        Ok(())
    }

    fn read(steps: &[Step], schema: u32, gateway: u32) -> Result<(u32, u64), DecodeError> {
        let body = Body::Tick(Tick { gateway, job_clock: 10 });
        let mut envelope = Envelope { schema, ..Envelope::new(EventTime::from_nanos(1), Coordinates::default(), body) };
        climb(steps, &mut envelope)?;
        let Some(Body::Tick(tick)) = envelope.body else { panic!("it stays a tick") };
        Ok((envelope.schema, tick.job_clock))
    }

    #[test]
    fn each_version_climbs_the_steps_that_it_lacks() {
        let steps: &[Step] = &[double, add_one];
        assert_eq!(read(steps, 1, 1).unwrap(), (3, 21));
        assert_eq!(read(steps, 2, 1).unwrap(), (3, 11));
        assert_eq!(read(steps, 3, 1).unwrap(), (3, 10));
        assert_eq!(read(&[], 1, 1).unwrap(), (1, 10));
    }

    #[test]
    fn a_version_that_is_not_known_is_refused() {
        for (steps, schema) in
            [(&[double as Step, add_one][..], 4), (&[double as Step][..], 0), (&[][..], 2), (&[][..], 0)]
        {
            assert!(matches!(read(steps, schema, 1), Err(DecodeError::Schema(found)) if found == schema));
        }
    }

    #[test]
    fn a_step_that_cannot_be_made_says_why() {
        let error = read(&[double], 1, 0).unwrap_err().to_string();
        assert!(error.contains("version 1") && error.contains("a tick of no gateway"), "{error}");
    }
}
