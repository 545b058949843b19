use proptest::prelude::*;

use super::*;

/// The e4m3 and e5m2 values by their definition: sign · 2^(e − bias) · (1 + m/2^mbits), denormal for e = 0.
fn by_definition(code: u8, exponent_bits: u32, mantissa_bits: u32) -> f64 {
    let bias = (1i32 << (exponent_bits - 1)) - 1;
    let exponent = i32::from((code & 0x7f) >> mantissa_bits);
    let fraction = f64::from(code & ((1 << mantissa_bits) - 1)) / f64::from(1u32 << mantissa_bits);
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    if exponent == 0 {
        sign * 2f64.powi(1 - bias) * fraction
    } else {
        sign * 2f64.powi(exponent - bias) * (1.0 + fraction)
    }
}

#[test]
fn f8_codes_widen_to_their_definition_and_back() {
    for code in 0..=255u8 {
        let e4m3 = f8_e4m3_to_f32(code);
        if code & 0x7f == 0x7f {
            assert!(e4m3.is_nan());
        } else {
            assert_eq!(f64::from(e4m3), by_definition(code, 4, 3), "e4m3 {code:#04x}");
            assert_eq!(f8_e4m3_from_f32(e4m3), code);
        }
        let e5m2 = f8_e5m2_to_f32(code);
        match code & 0x7f {
            0x7c => assert!(e5m2.is_infinite()),
            0x7d.. => assert!(e5m2.is_nan()),
            _ => {
                assert_eq!(f64::from(e5m2), by_definition(code, 5, 2), "e5m2 {code:#04x}");
                assert_eq!(f8_e5m2_from_f32(e5m2), code);
            }
        }
    }
}

#[test]
fn f8_rounds_half_to_even_between_neighbours() {
    for code in 0..0x7eu8 {
        let (low, high) = (f8_e4m3_to_f32(code), f8_e4m3_to_f32(code + 1));
        let middle = f32::midpoint(low, high); // exact: both have few mantissa bits
        let even = if code % 2 == 0 { code } else { code + 1 };
        assert_eq!(f8_e4m3_from_f32(middle), even, "middle of {low} and {high}");
        assert_eq!(f8_e4m3_from_f32(middle.next_down()), code);
        assert_eq!(f8_e4m3_from_f32(middle.next_up()), code + 1);
        assert_eq!(f8_e4m3_from_f32(-middle.next_up()), (code + 1) | 0x80);
    }
    // beyond the largest finite value: clamped
    assert_eq!(f8_e4m3_from_f32(1e30), 0x7e);
    assert_eq!(f8_e4m3_from_f32(f32::NEG_INFINITY), 0xfe);
}

#[test]
fn widening_is_the_same_at_every_length() {
    let values: Vec<f32> = (0..PARALLEL_MIN * 2 + 7).map(|i| (i as f32 - 300.0) * 0.37).collect();
    for precision in [Precision::F32, Precision::F16, Precision::Bf16] {
        let float = match precision {
            Precision::F32 => FloatType::F32,
            Precision::F16 => FloatType::F16,
            Precision::Bf16 => FloatType::Bf16,
        };
        let mut bytes = Vec::new();
        narrow(precision, &values, &mut bytes);
        let mut wide = vec![0.0; values.len()];
        widen(float, &bytes, &mut wide);
        for (x, y) in values.iter().zip(&wide) {
            assert_eq!(precision.round(*x), *y);
        }
    }
}

/// Every tensor of `fixtures/golden/convert.safetensors`, which torch wrote (`convert.py` beside it).
#[test]
fn conversions_equal_torch() {
    const GOLDEN: &[u8] = include_bytes!("../../../fixtures/golden/convert.safetensors");
    let golden = safetensors::SafeTensors::deserialize(GOLDEN).unwrap();
    let bytes = |name: &str| golden.tensor(name).unwrap().data().to_vec();
    let floats = |name: &str| -> Vec<f32> {
        bytes(name).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let input = floats("input");
    assert_eq!(input.len(), 16_796);
    for (name, precision) in [("f16", Precision::F16), ("bf16", Precision::Bf16)] {
        let mut narrowed = Vec::new();
        narrow(precision, &input, &mut narrowed);
        let (ours, torch) = (narrowed.as_chunks::<2>().0, bytes(name));
        for ((x, ours), torch) in input.iter().zip(ours).zip(torch.as_chunks::<2>().0) {
            assert_eq!(ours, torch, "{x:e} to {name}");
        }
    }
    for (x, (e4m3, e5m2)) in input.iter().zip(bytes("e4m3").iter().zip(bytes("e5m2"))) {
        assert_eq!((f8_e4m3_from_f32(*x), f8_e5m2_from_f32(*x)), (*e4m3, e5m2), "{x:e}");
    }
    let codes: Vec<u8> = (0..=255).collect();
    for (name, float) in [("e4m3.f32", FloatType::F8E4M3), ("e5m2.f32", FloatType::F8E5M2)] {
        let mut wide = vec![0.0; codes.len()];
        widen(float, &codes, &mut wide);
        for (code, (ours, torch)) in wide.iter().zip(floats(name)).enumerate() {
            // a NaN's sign and payload depend on the processor
            let same = ours.to_bits() == torch.to_bits() || (ours.is_nan() && torch.is_nan());
            assert!(same, "{name} of {code:#04x}: {ours}, torch {torch}");
        }
    }
}

/// What the format's specification says, from the other direction: the code whose value is nearest, of two the even.
fn nearest<const N: usize>(values: &[(f64, u16); N], x: f64) -> u16 {
    let distance = |(value, _): &(f64, u16)| (value - x).abs();
    let best = values.iter().map(distance).fold(f64::INFINITY, f64::min);
    let mut codes = values.iter().filter(|v| distance(v) == best).map(|(_, code)| *code);
    let first = codes.next().unwrap();
    codes.next().map_or(first, |second| if first % 2 == 0 { first } else { second })
}

#[test]
fn halves_by_definition_at_every_level() {
    // patterns around every f16: the value, both neighbours in f32, and the middle to the next
    let finite: Vec<(f64, u16)> = (0..0x7c00u16).map(|h| (f16::from_bits(h).to_f64(), h)).collect();
    for pair in finite.windows(2).step_by(7) {
        let (low, high) = (pair[0].0 as f32, pair[1].0 as f32);
        let middle = f32::midpoint(low, high);
        for x in [low, low.next_up(), middle.next_down(), middle, middle.next_up(), high] {
            let expected = nearest(&[pair[0], pair[1]], f64::from(x));
            for isa in Isa::all() {
                let mut out = Vec::new();
                narrow_with(isa, Precision::F16, &[x; 37], &mut out);
                for code in out.as_chunks::<2>().0 {
                    assert_eq!(u16::from_le_bytes(*code), expected, "{x:e} {isa:?}");
                }
            }
        }
    }
}

/// Bits of every kind of float, in a scattered order.
fn any_bits(count: usize, seed: u32) -> Vec<f32> {
    let special = [
        0,
        1,
        0x007f_ffff,
        0x0080_0000,
        0x3300_0000,
        0x3380_0000,
        0x387f_ffff,
        0x3880_0000,
        0x477f_efff,
        0x477f_f000,
        0x7f7f_7fff,
        0x7f7f_8000,
        0x7f7f_ffff,
        0x7f80_0000,
        0x7f80_0001,
        0x7fbf_ffff,
        0x7fc0_0000,
        0x7fff_ffff,
    ];
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state ^ state >> 15
    };
    (0..count)
        .map(|i| {
            let bits = next();
            f32::from_bits(if i % 3 == 0 {
                special[bits as usize % special.len()] | bits & 1 << 31
            } else {
                bits
            })
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_level_converts_alike(
        len in prop_oneof![0..200usize, Just(PARALLEL_MIN + 77)],
        seed: u32,
        offset in 0..40usize,
        stream: bool,
    ) {
        let values = &any_bits(len + offset, seed)[offset..];
        for (precision, narrow, widen, float) in [
            (Precision::F16, narrow_f16 as fn(Isa, &[f32], &mut [MaybeUninit<[u8; 2]>], bool) -> u32,
             widen_f16 as fn(Isa, &[[u8; 2]], &mut [MaybeUninit<f32>], bool), FloatType::F16),
            (Precision::Bf16, narrow_bf16, widen_bf16, FloatType::Bf16),
        ] {
            let mut expected = vec![0xaa; offset];
            narrow_with(Isa::Portable, precision, values, &mut expected);
            for (bytes, x) in expected[offset..].as_chunks::<2>().0.iter().zip(values) {
                let by_half = match precision {
                    Precision::F16 => f16::from_f32(*x).to_bits(),
                    _ => bf16::from_f32(*x).to_bits(),
                };
                prop_assert_eq!(u16::from_le_bytes(*bytes), by_half, "{:#x}", x.to_bits());
            }
            let largest = values.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
            for isa in Isa::all() {
                let mut bytes = vec![0xaa; offset];
                narrow_with(isa, precision, values, &mut bytes);
                prop_assert_eq!(&bytes, &expected);
                // at an address of any alignment, and past the caches
                let mut room = vec![[0u8; 2]; offset + len + 1];
                prop_assert_eq!(narrow(isa, values, uninit(&mut room[offset..offset + len]), stream), largest);
                prop_assert_eq!(room[offset..offset + len].as_flattened(), &expected[offset..]);
                prop_assert_eq!(room[offset + len], [0, 0]);
                let mut wide = vec![7.0; offset + len + 1];
                widen(isa, &room[offset..offset + len], uninit(&mut wide[offset..offset + len]), stream);
                let by_portable = {
                    let mut wide = vec![0.0; len];
                    widen_with(Isa::Portable, float, &expected[offset..], uninit(&mut wide));
                    wide
                };
                for (x, y) in wide[offset..].iter().zip(&by_portable) {
                    prop_assert_eq!(x.to_bits(), y.to_bits());
                }
                prop_assert_eq!(wide[offset + len], 7.0);
            }
        }
    }

    #[test]
    fn every_level_converts_other_types_alike(len in 0..200usize, seed: u32) {
        let values = any_bits(len, seed);
        let doubles: Vec<u8> = values.iter().flat_map(|x| (f64::from(*x) * 1.000_000_03).to_le_bytes()).collect();
        let run = |isa| {
            let (mut e4m3, mut e5m2) = (vec![0u8; len], vec![0u8; len]);
            narrow_e4m3(isa, &values, uninit(&mut e4m3));
            narrow_e5m2(isa, &values, uninit(&mut e5m2));
            let mut wide = vec![0f32; 3 * len];
            widen_with(isa, FloatType::F8E4M3, &e4m3, uninit(&mut wide[..len]));
            widen_with(isa, FloatType::F8E5M2, &e5m2, uninit(&mut wide[len..2 * len]));
            widen_with(isa, FloatType::F64, &doubles, uninit(&mut wide[2 * len..]));
            let bits: Vec<u32> = wide.iter().map(|x| x.to_bits()).collect();
            (e4m3, e5m2, bits)
        };
        let expected = run(Isa::Portable);
        for isa in Isa::all() {
            prop_assert_eq!(&run(isa), &expected);
        }
    }

    #[test]
    fn casts_count_and_clamp(len in 0..100usize, seed: u32, clamp: bool) {
        let values = any_bits(len, seed);
        for isa in Isa::all() {
            let (f16s, met) = cast_f16(isa, &values, clamp);
            let overflows = |x: &f32| x.is_finite() && f16::from_f32(*x).is_infinite();
            let overflow = values.iter().filter(|x| overflows(x)).count();
            prop_assert_eq!(met, Met { overflow, non_finite: values.iter().any(|x| !x.is_finite()) });
            for (x, h) in values.iter().zip(&f16s) {
                let x = if clamp && overflows(x) { 65504f32.copysign(*x) } else { *x };
                prop_assert_eq!(h.to_bits(), f16::from_f32(x).to_bits());
            }
            let (bf16s, met) = cast_bf16(isa, &values, clamp);
            let overflows = |x: &f32| x.is_finite() && bf16::from_f32(*x).is_infinite();
            prop_assert_eq!(met.overflow, values.iter().filter(|x| overflows(x)).count());
            for (x, h) in values.iter().zip(&bf16s) {
                let x = if clamp && overflows(x) { bf16::MAX.to_f32().copysign(*x) } else { *x };
                prop_assert_eq!(h.to_bits(), bf16::from_f32(x).to_bits());
            }
            prop_assert_eq!(would_meet(Precision::Bf16, &values), met);
        }
    }
}

#[test]
fn every_half_widens_as_the_half_crate_does() {
    let codes: Vec<[u8; 2]> = (0..=u16::MAX).map(u16::to_le_bytes).collect();
    for isa in Isa::all() {
        let mut wide = vec![0f32; codes.len()];
        widen_f16(isa, &codes, uninit(&mut wide), false);
        for (h, x) in (0..=u16::MAX).zip(&wide) {
            assert_eq!(x.to_bits(), f16::from_bits(h).to_f32().to_bits(), "f16 {h:#06x} {isa:?}");
        }
        widen_bf16(isa, &codes, uninit(&mut wide), true);
        for (h, x) in (0..=u16::MAX).zip(&wide) {
            assert_eq!(x.to_bits(), bf16::from_bits(h).to_f32().to_bits(), "bf16 {h:#06x} {isa:?}");
        }
    }
}

#[test]
#[ignore = "all 2^32 values: a minute"]
fn every_f32_narrows_as_the_half_crate_does() {
    (0..1u32 << 16).into_par_iter().for_each(|high| {
        let values: Vec<f32> = (0..1u32 << 16).map(|low| f32::from_bits(high << 16 | low)).collect();
        let by_half: Vec<[u16; 2]> =
            values.iter().map(|x| [f16::from_f32(*x).to_bits(), bf16::from_f32(*x).to_bits()]).collect();
        let mut codes = vec![[0u8; 2]; values.len()];
        for isa in Isa::all() {
            for (type_, narrow) in [narrow_f16, narrow_bf16].into_iter().enumerate() {
                narrow(isa, &values, uninit(&mut codes), false);
                for ((x, code), expected) in values.iter().zip(&codes).zip(&by_half) {
                    assert_eq!(u16::from_le_bytes(*code), expected[type_], "{:#x} {isa:?}", x.to_bits());
                }
            }
        }
    });
}

#[test]
fn typed_slices_and_bytes_agree() {
    let values = any_bits(STREAM_MIN / 2 + 1001, 3);
    let mut bytes = vec![1];
    narrow(Precision::F16, &values, &mut bytes);
    let mut typed = vec![f16::ZERO; values.len()];
    f32_to_f16(&values, &mut typed);
    assert!(typed.iter().zip(bytes[1..].as_chunks::<2>().0).all(|(h, b)| h.to_le_bytes() == *b));
    let mut wide = vec![0.0; values.len()];
    f16_to_f32(&typed, &mut wide);
    let from_bytes = widen_to_vec(FloatType::F16, &bytes[1..]);
    assert!(wide.iter().zip(&from_bytes).all(|(x, y)| x.to_bits() == y.to_bits()));
    let (copy, met) = cast_f32(&values);
    assert!(copy.iter().zip(&values).all(|(x, y)| x.to_bits() == y.to_bits()) && met.non_finite);
}
