//! Which partition a key belongs to, and short hashes of names.

/// Partition of `key` among `count` partitions: Kafka's murmur2 (seed 0x9747b28c), made positive, modulo `count`.
///
/// Sluice computes this itself on every log (DESIGN 2), so that equal keys land alike everywhere. A `count` of 0
/// gives 0.
pub fn partition_of(key: &[u8], count: u32) -> u32 {
    if count == 0 { 0 } else { (murmur2(key) & 0x7fff_ffff) % count }
}

/// Kafka's murmur2 of `data`, as `org.apache.kafka.common.utils.Utils.murmur2` computes it.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut h: u32 = 0x9747_b28c ^ (data.len() as u32);
    let (chunks, tail) = data.as_chunks::<4>();
    for chunk in chunks {
        let mut k = u32::from_le_bytes(*chunk).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (i, byte) in tail.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * i);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

/// 64-bit FNV-1a of a name: how a task is called in coordinates. The topology refuses names that collide.
pub const fn hash64(name: &str) -> u64 {
    let bytes = name.as_bytes();
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    hash
}

/// 32-bit FNV-1a of a name: how a topic is called in coordinates; never 0, which stands for "no topic".
pub const fn hash32(name: &str) -> u32 {
    let bytes = name.as_bytes();
    let mut hash: u32 = 0x811c_9dc5;
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u32).wrapping_mul(0x0100_0193);
        i += 1;
    }
    if hash == 0 { 1 } else { hash }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors of Kafka's own test (`UtilsTest.testMurmur2`).
    #[test]
    fn murmur2_agrees_with_kafka() {
        for (key, expected) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, expected, "{key}");
        }
    }

    #[test]
    fn partition_is_below_the_count() {
        for count in 1..20 {
            assert!(partition_of(b"bc1q.worker", count) < count);
        }
        assert_eq!(partition_of(b"x", 0), 0);
    }

    #[test]
    fn name_hashes_are_fnv1a() {
        assert_eq!(hash64(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash64("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(hash32("a"), 0xe40c_292c);
    }
}
