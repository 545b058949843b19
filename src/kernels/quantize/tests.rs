use super::*;

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::F16, Precision::Bf16];

#[test]
fn codes_are_rounded_half_to_even_and_clamped() {
    // every quarter from −200 to 200
    for quarter in -800..=800i32 {
        let x = quarter as f32 / 4.0;
        for bits in 2..=8u8 {
            let half = f32::from(1i16 << (bits - 1));
            let expected = x.clamp(-half, half - 1.0).round_ties_even() as i8;
            let mut code = [0i8];
            quantize_int(&[x], Affine { scale: 1.0, zero_point: 0 }, bits, Precision::F32, &mut code);
            assert_eq!(code, [expected], "{x} in {bits} bits");
        }
    }
}

#[test]
fn e4m3_codes_are_those_of_the_conversion() {
    for code in 0..=255u8 {
        let value = portable::e4m3_value(code);
        assert_eq!(value.to_bits(), f8_e4m3_to_f32(code).to_bits(), "{code:#04x}");
    }
    // all upper halves in ±448 with the lower bits around ties
    for upper in (0..=0x43e0u32).chain(0x8000..=0xc3e0) {
        for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
            let x = f32::from_bits(upper << 16 | if upper & 0x7fff == 0x43e0 { 0 } else { lower });
            assert_eq!(portable::e4m3(x), f8_e4m3_from_f32(x), "{x:e}");
        }
    }
}

/// One value after the other, with library functions only.
fn by_definition(scheme: Scheme, values: &[f32]) -> Option<(Vec<u8>, Vec<Affine>)> {
    let Scheme { codes, precision: p, cols, group } = scheme;
    let (mut out, mut affines) = (Vec::new(), Vec::new());
    for values in values.chunks(cols).flat_map(|row| row.chunks(group)) {
        let min = values.iter().fold(0.0f32, |a, x| a.min(*x));
        let max = values.iter().fold(0.0f32, |a, x| a.max(*x));
        let (levels, symmetric) = match codes {
            Codes::Int { bits, symmetric } => ((1u32 << bits) as f32 - 1.0, symmetric),
            Codes::F8E4M3 => (896.0, true),
        };
        let low = -(levels + 1.0) / 2.0;
        let mut scale = if symmetric {
            p.round(max.max(-min) / (levels / 2.0))
        } else {
            p.round(p.round(max - min) / levels)
        };
        let zero_point = if symmetric || min == 0.0 && scale == 0.0 {
            0.0
        } else {
            let shift = if min == 0.0 { 0.0 } else { p.round(min / scale) };
            p.round(low - shift).clamp(low, low + levels).round_ties_even()
        };
        if scale == 0.0 {
            scale = p.epsilon();
        }
        if !scale.is_finite() {
            return None;
        }
        affines.push(Affine { scale, zero_point: zero_point as i8 });
        out.extend(values.iter().map(|x| {
            let scaled = p.round(p.round(x / scale) + zero_point);
            match codes {
                Codes::Int { .. } => (scaled.clamp(low, low + levels).round_ties_even() - low) as u8,
                Codes::F8E4M3 => f8_e4m3_from_f32(scaled.clamp(-448.0, 448.0)),
            }
        }));
    }
    Some((out, affines))
}

fn packed(scheme: Scheme, codes: &[u8]) -> Vec<u32> {
    let Codes::Int { bits, .. } = scheme.codes else { panic!("integers") };
    let mut words = vec![0; codes.len() / scheme.cols * scheme.out_per_row()];
    for (codes, words) in codes.chunks(scheme.cols).zip(words.chunks_mut(scheme.out_per_row())) {
        pack::pack(codes, bits, words);
    }
    words
}

fn check_levels(scheme: Scheme, values: &[f32]) {
    let (rows, groups) = (values.len() / scheme.cols, scheme.groups_per_row());
    let expected = by_definition(scheme, values);
    for isa in Isa::all() {
        let mut scales = vec![f32::NAN; rows * groups];
        let mut zero_points = vec![99i8; rows * groups];
        let mut words = vec![u32::MAX; rows * scheme.out_per_row()];
        let mut bytes = vec![0xffu8; rows * scheme.out_per_row()];
        let out = match scheme.codes {
            Codes::Int { bits, .. } => Out::Words(bits, as_uninit(&mut words)),
            Codes::F8E4M3 => Out::Bytes(as_uninit(&mut bytes)),
        };
        let params =
            Params { scales: as_uninit(&mut scales), zero_points: Some(as_uninit(&mut zero_points)) };
        let done = quantize_task(isa, Job { scheme, values, out, params });
        let Some((codes, affines)) = &expected else {
            assert!(!done, "{scheme:?} {isa:?}");
            continue;
        };
        assert!(done, "{scheme:?} {isa:?}");
        for (i, affine) in affines.iter().enumerate() {
            assert_eq!(scales[i].to_bits(), affine.scale.to_bits(), "{scheme:?} {isa:?} {i}");
            assert_eq!(zero_points[i], affine.zero_point, "{scheme:?} {isa:?} {i}");
        }
        let wrong = |what| format!("{what} {scheme:?} {isa:?} {values:?}");
        let encoded = encode_to_vec(scheme, values, 1, affines);
        match (scheme.codes, encoded) {
            (Codes::Int { .. }, Stored::Words(encoded)) => {
                let expected = packed(scheme, codes);
                assert!(words == expected, "{}", wrong("quantized"));
                assert!(encoded == expected, "{}", wrong("encoded"));
            }
            (_, Stored::Bytes(encoded)) => {
                assert!(bytes == *codes, "{}", wrong("quantized"));
                assert!(encoded == *codes, "{}", wrong("encoded"));
            }
            _ => panic!("integers are words"),
        }
    }
}

proptest::proptest! {
    #[test]
    fn every_level_quantizes_by_definition(
        bits in 2..=9u8,
        symmetric: bool,
        precision in 0..3usize,
        cols in 1..300usize,
        rows in 1..4usize,
        group in 1..300usize,
        kind in 0..6u32,
        seed: u64,
        offset in 0..5usize,
    ) {
        let mut state = seed;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32
        };
        let precision = PRECISIONS[precision];
        let half = f32::from(1u16 << (bits - 1)) - 0.5;
        let values: Vec<f32> = (0..offset + rows * cols)
            .map(|_| {
                let r = random();
                let unit = (r >> 7) as f32 / 16_777_216.0 - 0.5;
                let x = match kind {
                    0 => unit,
                    // halves: ties wherever the extremes make the scale a power of two
                    1 => if r % 16 == 0 { half.copysign(unit) } else { (unit * 2.0 * half).floor() + 0.5 },
                    2 => unit * 1e-38,
                    3 => [0.0, -0.0, 1e-45, -1e-45, 1e-40][r as usize % 5],
                    4 => unit * precision.max(),
                    _ => unit * 10f32.powi((r % 60) as i32 - 30),
                };
                let x = precision.round(x);
                if x.is_finite() { x } else { 1.0 }
            })
            .collect();
        let codes = if bits == 9 { Codes::F8E4M3 } else { Codes::Int { bits, symmetric } };
        check_levels(Scheme { codes, precision, cols, group }, &values[offset..]);
    }
}

#[test]
fn long_rows_and_many_rows_are_the_same_at_every_level_and_split() {
    let value = |i: usize| ((i * 7919 + 13) % 10_007) as f32 * 1e-3 - 5.0;
    for (rows, cols) in [(1, 70_001), (3, 40_000), (700, 129)] {
        let values: Vec<f32> = (0..rows * cols).map(value).collect();
        for (codes, group) in [
            (Codes::Int { bits: 8, symmetric: true }, cols),
            (Codes::Int { bits: 4, symmetric: false }, 128),
            (Codes::Int { bits: 3, symmetric: true }, 100),
            (Codes::F8E4M3, cols),
        ] {
            let scheme = Scheme { codes, precision: Precision::F32, cols, group };
            check_levels(scheme, &values);
            let (stored, scales, _) = quantize_to_vecs(scheme, &values).unwrap();
            let (expected, affines) = by_definition(scheme, &values).unwrap();
            assert!(scales.iter().eq(affines.iter().map(|a| &a.scale)));
            match stored {
                Stored::Words(words) => assert!(words == packed(scheme, &expected)),
                Stored::Bytes(bytes) => assert!(bytes == expected),
            }
        }
    }
}

/// Values on ties, and next to them, under scales that leave a division little room.
#[test]
fn every_level_encodes_what_lies_on_ties() {
    let mut state = 3u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u32
    };
    let mut scales = vec![1e-18, 1e18, 1.0, 448.0, f32::MIN_POSITIVE, 1e-45, 1e-40, 1e30, 3e38];
    for exponent in [1, 60, 66, 67, 68, 100, 113, 120, 126, 127, 150, 186, 187, 188] {
        for _ in 0..12 {
            let near = (random() % 40) as i32 - 20;
            let (power, multiple) = (exponent << 23, (random() % 1024) as i32);
            scales.extend([power + near, power + (multiple << 13) + near].map(|s| f32::from_bits(s as u32)));
            scales.push(f32::from_bits(power as u32 + (random() & 0x7f_ffff)));
        }
    }
    for scale in scales {
        // ties of integers and e4m3, of bf16, of f16; what is rounded to zero; and far away
        let mut values = vec![0.0, -0.0, 1e-45, -1e-45, scale * 1e-38, scale * 2f32.powi(-134)];
        for i in 0..120 {
            let odd = (2 * random() + 1) as f32;
            let tie = match i % 4 {
                0 => (odd % 1024.0 - 512.0) / 2.0,
                1 => (odd % 512.0) * 2f32.powi(-((random() % 20) as i32)),
                2 => -(odd % 4096.0) * 2f32.powi(-((random() % 30) as i32)),
                _ => (odd % 32.0) * 2f32.powi((random() % 12) as i32 - 10),
            };
            values.push(scale * tie);
        }
        values.extend([-134i32, -127, -126, -25, -10].map(|e| scale * 2f32.powi(e) * 1.000_000_1));
        let near = |x: f32| [-1, 0, 1].map(|d| f32::from_bits(x.to_bits().wrapping_add_signed(d)));
        let values: Vec<f32> = values.into_iter().flat_map(near).filter(|x| x.is_finite()).collect();
        let zero_points = [0, 5, -128];
        let int = |bits, symmetric| Codes::Int { bits, symmetric };
        for codes in [int(8, true), int(4, true), int(8, false), Codes::F8E4M3] {
            for precision in PRECISIONS {
                for zero_point in &zero_points[..if codes == int(8, false) { 3 } else { 1 }] {
                    let affine = Affine { scale, zero_point: *zero_point };
                    let scheme = Scheme { codes, precision, cols: values.len(), group: 300 };
                    let affines = [affine; 4];
                    let affines = &affines[..scheme.groups_per_row()];
                    let mut expected = vec![0u8; values.len()];
                    encode_run(Isa::Portable, codes, affine, precision, &values, as_uninit(&mut expected));
                    for isa in Isa::all() {
                        let mut words = vec![0u32; scheme.out_per_row()];
                        let mut bytes = vec![0u8; values.len()];
                        let out = match codes {
                            Codes::Int { bits, .. } => Out::Words(bits, as_uninit(&mut words)),
                            Codes::F8E4M3 => Out::Bytes(as_uninit(&mut bytes)),
                        };
                        encode_task(isa, Encode { scheme, values: &values, out, affines, stride: 0 });
                        if let Codes::Int { bits, .. } = codes {
                            pack::unpack(&words, bits, 0, &mut bytes);
                        }
                        for ((x, code), expected) in values.iter().zip(&bytes).zip(&expected) {
                            assert_eq!(code, expected, "{x:e} {affine:?} {codes:?} {precision:?} {isa:?}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn blocks_of_rows_share_their_parameters() {
    let values: Vec<f32> = (0..5 * 6).map(|i| i as f32 - 15.0).collect();
    let affines: Vec<Affine> =
        [1.0, 2.0, 4.0, 8.0, 16.0, 32.0].map(|scale| Affine { scale, zero_point: 1 }).to_vec();
    let codes = Codes::Int { bits: 8, symmetric: false };
    let scheme = Scheme { codes, precision: Precision::F32, cols: 6, group: 4 };
    let Stored::Words(words) = encode_to_vec(scheme, &values, 2, &affines) else { panic!("words") };
    let mut stored = [0u8; 6];
    for row in 0..5 {
        pack::unpack(&words[row * 2..row * 2 + 2], 8, 0, &mut stored);
        for (col, code) in stored.iter().enumerate() {
            let scale = affines[row / 2 * 2 + col / 4].scale;
            let expected = (values[row * 6 + col] / scale + 1.0).round_ties_even() + 128.0;
            assert_eq!(f32::from(*code), expected, "{row}, {col}");
        }
    }
}

#[test]
fn the_first_fault_of_all_rows_is_named() {
    let mut values = vec![1.0f32; 1000 * 100];
    let scheme = Scheme {
        codes: Codes::Int { bits: 4, symmetric: false },
        precision: Precision::F16,
        cols: 100,
        group: 50,
    };
    (values[160], values[149]) = (-65504.0, 65504.0);
    values[199] = 65504.0;
    let range = QuantizeError::Range { min: -65504.0, max: 65504.0 };
    assert_eq!(quantize_to_vecs(scheme, &values).unwrap_err(), range);
    (values[70_123], values[99_999]) = (f32::NEG_INFINITY, f32::NAN);
    let found = NonFinite { index: 70_123, value: f32::NEG_INFINITY };
    assert_eq!(quantize_to_vecs(scheme, &values).unwrap_err(), found.into());
}

#[test]
fn dequantizing_is_the_product_at_every_level() {
    let codes: Vec<i8> = (0..517).map(|i| (i * 37 % 256) as u8 as i8).collect();
    let bytes: Vec<u8> = codes.iter().map(|c| *c as u8).collect();
    let affine = Affine { scale: 0.037, zero_point: -7 };
    let mut out = vec![0.0; codes.len()];
    for isa in Isa::all() {
        for p in PRECISIONS {
            dequantize_int_run(isa, &codes, affine, p, &mut out);
            for (x, code) in out.iter().zip(&codes) {
                assert_eq!(*x, p.round((f32::from(*code) + 7.0) * 0.037));
            }
            dequantize_f8_run(isa, &bytes, 0.037, p, &mut out);
            for (x, code) in out.iter().zip(&bytes) {
                assert_eq!(x.to_bits(), p.round(f8_e4m3_to_f32(*code) * 0.037).to_bits());
            }
        }
    }
}
