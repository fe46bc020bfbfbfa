//! Rendezvous hashing (highest random weight): each key has an order of all endpoints, and goes
//! to the first of them that can be used. When an endpoint leaves, only its keys move; when one
//! comes, only the keys move that go to it.

/// How high the endpoint with the hash `endpoint` stands for `key`, in proportion to its weight.
pub(super) fn score(key: u64, endpoint: u64, weight: u32) -> f64 {
    let hash = mix(key ^ mix(endpoint));
    // Uniform in (0, 1): 53 bits, and never 0.
    let uniform = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    f64::from(weight) / -uniform.ln()
}

/// A hash of bytes that is the same in all processes: FNV-1a, mixed.
pub fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    mix(fnv)
}

/// Every bit of the result depends on every bit of `x` (the finalizer of SplitMix64).
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn best(key: u64, endpoints: &[(u64, u32)]) -> Option<u64> {
        let scored = endpoints
            .iter()
            .map(|(endpoint, weight)| (score(key, *endpoint, *weight), *endpoint));
        let best = scored.max_by(|(one, _), (other, _)| one.total_cmp(other));
        best.map(|(_, endpoint)| endpoint)
    }

    proptest! {
        #[test]
        fn only_the_keys_of_an_endpoint_that_leaves_move(
            key: u64,
            endpoints in prop::collection::hash_map(any::<u64>(), 1u32..100, 2..20),
        ) {
            let all: Vec<_> = endpoints.into_iter().collect();
            let chosen = best(key, &all).unwrap();
            for (gone, _) in &all {
                let left: Vec<_> = all.iter().copied().filter(|(one, _)| one != gone).collect();
                let now = best(key, &left).unwrap();
                prop_assert!(now == chosen || *gone == chosen);
            }
        }

        #[test]
        fn an_endpoint_that_comes_takes_keys_only_for_itself(
            key: u64,
            endpoints in prop::collection::hash_map(any::<u64>(), 1u32..100, 1..20),
            new: u64,
        ) {
            let mut all: Vec<_> = endpoints.into_iter().collect();
            let before = best(key, &all).unwrap();
            all.push((new, 1));
            let after = best(key, &all).unwrap();
            prop_assert!(after == before || after == new);
        }

        #[test]
        fn the_order_of_endpoints_does_not_matter(key: u64, a: u64, b: u64, c: u64) {
            let one = best(key, &[(a, 1), (b, 1), (c, 1)]);
            prop_assert_eq!(one, best(key, &[(c, 1), (a, 1), (b, 1)]));
        }
    }

    #[test]
    fn keys_are_spread_by_weight() {
        let endpoints = [(hash(b"10.0.0.1:80"), 1), (hash(b"10.0.0.2:80"), 3)];
        let keys = 0..20_000u64;
        let second =
            keys.filter(|key| best(hash(&key.to_le_bytes()), &endpoints) == Some(endpoints[1].0));
        let second = second.count();
        assert!((14_600..15_400).contains(&second), "{second}");
    }
}
