//! Tensors in and out of checkpoints.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, VarMap};
use tersor::candle::{
    compress, save_variables, set_variables, tensors_of, variables_of, weight_of, weights_of,
};
use tersor::{Bits, Checkpoint, CompressedWeight, RoundToNearest, one_line, save_weights};

use crate::{grid, values};

fn map(entries: &[(&str, Tensor)]) -> VarMap {
    let mut map = VarMap::new();
    for (name, tensor) in entries {
        map.get(tensor.dims(), name, Init::Const(0.0), tensor.dtype(), &Device::Cpu).unwrap();
        map.set_one(name, tensor).unwrap();
    }
    map
}

#[test]
fn variables_come_back_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let entries = [
        ("fc.weight", grid(&[3, 4], 1)),
        ("fc.bias", grid(&[3], 2)),
        ("half.weight", grid(&[2, 5], 3).to_dtype(DType::F16).unwrap()),
        ("brain.weight", grid(&[2, 2, 3, 3], 4).to_dtype(DType::BF16).unwrap()),
    ];
    save_variables(&path, &map(&entries)).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let names: Vec<&str> = checkpoint.entries().iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["brain.weight", "fc.bias", "fc.weight", "half.weight"]);
    // candle reads the same
    let theirs = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let read = tensors_of(&checkpoint, &Device::Cpu).unwrap();
    let variables = variables_of(&checkpoint, &Device::Cpu).unwrap();
    for (name, tensor) in &entries {
        for other in [&read[*name], &theirs[*name], variables.data().lock().unwrap()[*name].as_tensor()] {
            assert_eq!((other.dtype(), other.dims()), (tensor.dtype(), tensor.dims()), "{name}");
            let wide = |t: &Tensor| values(&t.to_dtype(DType::F32).unwrap());
            assert_eq!(wide(other), wide(tensor), "{name}");
        }
    }
    let error = save_variables(&path, &map(&entries)).unwrap_err();
    assert!(one_line(&error).contains("already exists"), "{error}");
}

#[test]
fn compressed_weights_are_stored_as_they_are_and_read_into_variables() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let variables = map(&[("fc.weight", grid(&[8, 16], 1)), ("fc.bias", grid(&[8], 2))]);
    let mut weights = weights_of(&variables).unwrap();
    let int4 = compress(&grid(&[8, 16], 1), &RoundToNearest::int(Bits::new(4).unwrap())).unwrap();
    weights.insert("fc.weight".into(), int4.clone());
    save_weights(&path, &weights).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.weight("fc.weight").unwrap(), int4);
    assert_eq!(checkpoint.weight("fc.bias").unwrap(), weight_of(&grid(&[8], 2)).unwrap());
    set_variables(&variables, &checkpoint).unwrap();
    let set = variables.data().lock().unwrap()["fc.weight"].as_tensor().clone();
    assert_eq!(values(&set), int4.dequantize().into_raw_vec_and_offset().0);
}

#[test]
fn variables_that_do_not_fit_a_checkpoint_are_named_and_stay() {
    let checkpoint = Checkpoint::open("fixtures/fashion-mlp").unwrap();
    let refused = |variables: &VarMap| one_line(&set_variables(variables, &checkpoint).unwrap_err());
    let error = refused(&map(&[("fc1.bias", grid(&[300], 1)), ("fc9.weight", grid(&[2, 2], 1))]));
    assert!(error.contains("fixtures/fashion-mlp") && error.contains("`fc9.weight`"), "{error}");
    let variables = map(&[("fc1.bias", grid(&[300], 1)), ("fc3.bias", grid(&[11], 1))]);
    let error = refused(&variables);
    assert!(error.contains("`fc3.bias`") && error.contains("[10]") && error.contains("[11]"), "{error}");
    assert_eq!(values(&variables.data().lock().unwrap()["fc1.bias"]), values(&grid(&[300], 1)));
    // converted to the variable's type
    let half = map(&[("fc3.bias", grid(&[10], 1).to_dtype(DType::F16).unwrap())]);
    set_variables(&half, &checkpoint).unwrap();
    assert_eq!(half.data().lock().unwrap()["fc3.bias"].dtype(), DType::F16);
}

#[test]
fn names_that_would_collide_are_refused_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let int4 = compress(&grid(&[8, 16], 1), &RoundToNearest::int(Bits::new(4).unwrap())).unwrap();
    let bias = weight_of(&grid(&[8], 2)).unwrap();
    let weights: BTreeMap<String, CompressedWeight> =
        [("w".to_owned(), int4), ("w_scale".to_owned(), bias.clone())].into();
    let error = one_line(&save_weights(&path, &weights).unwrap_err());
    assert!(error.contains("`w`") && error.contains("`w_scale`"), "{error}");
    let weights = [("__metadata__".to_owned(), bias)].into();
    assert!(one_line(&save_weights(&path, &weights).unwrap_err()).contains("`__metadata__`"));
    assert!(!path.exists());
}
