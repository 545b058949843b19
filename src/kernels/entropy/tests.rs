use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

fn round_trip(symbols: &[u8]) -> (Vec<u8>, f64) {
    let mut bytes = vec![0xaa];
    let bound = encode(symbols, &mut bytes);
    bytes.push(0x55);
    let mut read = vec![0xee; symbols.len()];
    assert_eq!(decode(&bytes[1..], &mut read), Ok(&[0x55][..]));
    assert!(read == symbols);
    bytes.pop();
    bytes.remove(0);
    (bytes, bound)
}

/// Symbols around 128, as wide as `width`.
fn bell(count: usize, width: f32, seed: u64) -> Vec<u8> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut normal = || (0..12).map(|_| random.random::<f32>()).sum::<f32>() - 6.0;
    (0..count).map(|_| (128.0 + width * normal()).clamp(0.0, 255.0) as u8).collect()
}

proptest::proptest! {
    #[test]
    fn what_is_written_is_read(
        symbols in proptest::collection::vec(proptest::num::u8::ANY, 0..600),
        mask in proptest::num::u8::ANY,
        repeat in 1usize..40,
    ) {
        let symbols: Vec<u8> = symbols.iter().map(|s| s & mask).collect::<Vec<_>>().repeat(repeat);
        round_trip(&symbols);
    }

    #[test]
    fn damaged_streams_are_no_panics(
        at in proptest::collection::vec((0usize..4000, 1u8..), 1..4),
        cut in 0usize..400,
        lie in 0usize..9000,
    ) {
        let symbols = bell(5000, 9.0, 1);
        let (mut bytes, _) = round_trip(&symbols);
        for (at, by) in at {
            let len = bytes.len();
            bytes[at % len] ^= by;
        }
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        let mut read = vec![0; lie];
        // whatever comes of it
        decode(&bytes, &mut read).ok();
    }

    #[test]
    fn gaps_come_back(mut positions in proptest::collection::vec(0u64..1 << 40, 0..300)) {
        positions.sort_unstable();
        positions.dedup();
        let mut gaps = Gaps::default();
        for position in &positions {
            gaps.push(*position);
        }
        let mut bytes = Vec::new();
        gaps.write(&mut bytes);
        let mut read = Vec::new();
        let rest = read_gaps(&bytes, positions.len(), 1 << 40, |p| read.push(p)).unwrap();
        proptest::prop_assert!(rest.is_empty());
        proptest::prop_assert_eq!(&read, &positions);
        let end = positions.last().copied().unwrap_or(0);
        if !positions.is_empty() {
            proptest::prop_assert!(read_gaps(&bytes, positions.len(), end, |_| ()).is_err());
        }
    }
}

#[test]
fn long_streams_come_within_a_hundredth_of_the_bound() {
    for (width, count) in [(40.0, 1 << 20), (9.0, 300_000), (1.5, 200_000), (0.2, 200_000)] {
        let (bytes, bound) = round_trip(&bell(count, width, 2));
        let over = bytes.len() as f64 * 8.0 / bound;
        assert!((1.0..1.01).contains(&over), "width {width}: {over}");
    }
    // one symbol in a thousand is another
    let rare: Vec<u8> =
        (0..1_000_000u32).map(|i| u8::from(i.wrapping_mul(2_654_435_761) >> 22 == 0)).collect();
    let (bytes, bound) = round_trip(&rare);
    assert!((bytes.len() as f64) < bound / 8.0 * 1.01 + 16.0 * 20.0, "{} {bound}", bytes.len());
}

#[test]
fn short_streams_are_short() {
    assert_eq!(round_trip(&[7; 1000]).0, [0, 7]);
    assert_eq!(round_trip(&[]).0, [0, 0]);
    // one bit each, and the byte that says so
    assert_eq!(round_trip(&[1, 0, 1, 1]).0, [1, 0b1101]);
    let flat: Vec<u8> = (0..=255).collect();
    assert_eq!(round_trip(&flat).0.len(), 257);
    // a hundred symbols of 1.5 bits: 19 bytes, a state, and a table
    let skewed: Vec<u8> = (0..100).map(|i| [0u8, 0, 1, 2][i % 4]).collect();
    assert!(round_trip(&skewed).0.len() <= 26);
}

#[test]
fn the_number_of_threads_does_not_matter() {
    let symbols = bell(300_000, 20.0, 3);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| round_trip(&symbols).0)
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn the_bound_is_shannons() {
    let mut counts = [0; 256];
    (counts[0], counts[1], counts[9]) = (50, 25, 25);
    assert!((bound(&counts) - 150.0).abs() < 1e-9);
    assert_eq!(histogram(&[3, 3, 9])[3], 2);
}

#[test]
fn streams_that_no_encoder_writes_are_refused() {
    let symbols = bell(5000, 9.0, 4);
    let (bytes, _) = round_trip(&symbols);
    let read = |bytes: &[u8], count: usize| decode(bytes, &mut vec![0; count]).map(<[u8]>::len);
    assert_eq!(read(&bytes, 5000), Ok(0));
    for cut in 0..bytes.len() {
        assert!(read(&bytes[..cut], 5000).is_err(), "cut at {cut}");
    }
    assert!(read(&bytes, 4999).is_err() && read(&bytes, 5001).is_err());
    for (kind, count) in [(9, 4), (15, 4), (23, 4), (31, 4), (255, 4)] {
        assert!(read(&[kind, 0, 0, 0, 0, 0, 0, 0], count).is_err(), "kind {kind}");
    }
    // what changes only the last few symbols can end as it should, nothing else
    let mut wrong = 0;
    for at in bytes.len() / 2..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        wrong += usize::from(read(&bytes, 5000).is_ok());
    }
    assert!(wrong * 20 < bytes.len(), "{wrong} of {} went unnoticed", bytes.len() / 2);
}
