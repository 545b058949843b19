//! Recipes and presets that cannot be followed: what is wrong, and what would be right.

use tersor::DType;

use crate::args;
use crate::common::Folder;
use crate::models::{architectures, decoder, folder, mixed};
use crate::run::{assert_contains, refuses, tersor};

/// Plans with a recipe that is refused, and compresses with it. Gives the line.
fn refused(recipe: impl AsRef<[u8]>, parts: &[&str]) -> String {
    let source = folder(&mixed(DType::F32), None);
    let recipes = Folder::new();
    let path = recipes.put("recipe.toml", recipe);
    let line = tersor(args!["plan", source.path(), "--recipe", path]).error(1);
    assert_contains(&line, parts);
    assert_eq!(refuses(source.path(), &["--recipe", path.to_str().unwrap()], parts), line);
    line
}

fn step(text: &str) -> String {
    format!("[[step]]\n{text}\n")
}

#[test]
fn files_that_are_no_recipes() {
    let name = "recipe.toml: ";
    refused(b"\xff\xfe", &[name, "cannot read", "UTF-8"]);
    refused("[[step]\nquantize = 1", &[name, "recipe: TOML parse error at line 1"]);
    refused("", &[name, "has no [[step]]"]);
    refused("step = 3", &[name, "[[step]]"]);
    refused("[[step]]", &[name, "step 1", "one of `prune`, `quantize` and `low_rank`"]);
    let source = folder(&mixed(DType::F32), None);
    let missing = source.path().join("missing.toml");
    let missing = missing.to_str().unwrap();
    refuses(source.path(), &["--recipe", missing], &[missing, "cannot read", "No such file"]);
    refuses(source.path(), &["--recipe", source.path().to_str().unwrap()], &["cannot read"]);
}

#[cfg(unix)]
#[test]
fn a_device_is_no_recipe() {
    let source = folder(&mixed(DType::F32), None);
    let parts = ["/dev/zero: cannot read", "not a regular file"];
    refuses(source.path(), &["--recipe", "/dev/zero"], &parts);
}

#[test]
fn unknown_keys_and_names_suggest_the_nearest() {
    for (recipe, unknown, nearest) in [
        (step("quantise = { bits = 8 }"), "key `quantise` in step 1", "quantize"),
        (step("quantize = { bit = 8 }"), "key `bit` in step 1, `quantize`", "bits"),
        (step("quantize = { bits = 8 }\nnmaes = []"), "key `nmaes` in step 1", "names"),
        (
            format!("ignored = []\n{}", step("quantize = { bits = 8 }")),
            "key `ignored` in the recipe",
            "ignore",
        ),
        (
            step("quantize = { bits = 8 }") + &step("prune = { methd = \"rows\" }"),
            "key `methd` in step 2",
            "method",
        ),
        (step("quantize = { bits = 8 }\nclasses = [\"liner\"]"), "class `liner`", "linear"),
        (step("quantize = { bits = 8, observer = \"minmax\" }"), "observer `minmax`", "min_max"),
        (step("quantize = { bits = 8, strategy = \"chanel\" }"), "strategy `chanel`", "channel"),
        (step("quantize = { type = \"fp16\" }"), "type `fp16`", "f16"),
        (step("prune = { method = \"magnitud\", sparsity = 0.5 }"), "method `magnitud`", "magnitude"),
        (
            step("prune = { method = \"magnitude\", sparsity = 0.5, scope = \"gobal\" }"),
            "scope `gobal`",
            "global",
        ),
        (step("prune = { method = \"sparse-gpt\", sparsity = 0.5 }"), "method `sparse-gpt`", "sparsegpt"),
        (
            step("prune = { method = \"magnitude\", sparsity = 0.5, layout = \"bitmap\" }"),
            "layout `bitmap`",
            "bitmask",
        ),
        (
            format!("format = \"compressed_tensors\"\n{}", step("quantize = { bits = 8 }")),
            "format `compressed_tensors`",
            "compressed-tensors",
        ),
    ] {
        refused(
            recipe,
            &[
                "recipe.toml: ",
                &format!("unknown {unknown}").replace("unknown method", "unknown pruning method"),
                &format!("did you mean `{nearest}`?"),
            ],
        );
    }
}

#[test]
fn values_outside_their_range() {
    for (text, parts) in [
        ("quantize = { bits = 1 }", &["step 1, `quantize`: `bits`", "2 to 8"][..]),
        ("quantize = { bits = 9 }", &["2 to 8"]),
        ("quantize = { bits = -4 }", &["2 to 8"]),
        ("quantize = { bits = 4.0 }", &["`bits`", "must be a whole number, not 4.0"]),
        ("quantize = { bits = \"4\" }", &["must be a whole number, not \"4\""]),
        ("quantize = {}", &["needs `bits`"]),
        ("quantize = { bits = 4, group_size = 0 }", &["`group_size`", "0 is no size"]),
        ("quantize = { bits = 4, group_size = -1 }", &["-1 is no size"]),
        ("quantize = { bits = 4, strategy = \"group\" }", &["needs `group_size`"]),
        (
            "quantize = { bits = 4, strategy = \"channel\", group_size = 64 }",
            &["strategy `channel`", "group_size"],
        ),
        ("quantize = { bits = 4, block = [64] }", &["`block`", "[rows, columns]"]),
        ("quantize = { bits = 4, block = [8, 8], group_size = 8 }", &["both group_size and block"]),
        ("quantize = { bits = 4, percentile = 0 }", &["percentile is 0"]),
        ("quantize = { bits = 4, observer = \"mse\", percentile = 99 }", &["`percentile`", "belongs to"]),
        ("quantize = { bits = 4, overflow = \"clamp\" }", &["`overflow`", "f16 and bf16"]),
        ("quantize = { type = \"f16\", bits = 4 }", &["key `bits`"]),
        ("quantize = { type = \"f8_e4m3\", symmetric = false }", &["key `symmetric`"]),
        ("prune = { method = \"magnitude\" }", &["needs `sparsity`"]),
        ("prune = { method = \"magnitude\", sparsity = 1.0 }", &["sparsity is 1,", "below 1"]),
        ("prune = { method = \"magnitude\", sparsity = -0.1 }", &["sparsity is -0.1"]),
        ("prune = { method = \"magnitude\", sparsity = nan }", &["sparsity is NaN"]),
        ("prune = { method = \"n:m\" }", &["needs `pattern`"]),
        ("prune = { method = \"n:m\", pattern = \"24\" }", &["pattern `24`", "1 ≤ N ≤ M ≤ 16"]),
        ("prune = { method = \"n:m\", pattern = \"5:4\" }", &["pattern `5:4`"]),
        // what another method has would do nothing here
        ("prune = { method = \"n:m\", pattern = \"2:4\", sparsity = 0.9 }", &["key `sparsity`"]),
        ("prune = { method = \"n:m\", pattern = \"2:4\", scope = \"global\" }", &["key `scope`"]),
        ("prune = { method = \"rows\", sparsity = 0.5, scope = \"global\" }", &["key `scope`"]),
        (
            "prune = { method = \"magnitude\", sparsity = 0.5, pattern = \"2:4\" }",
            &["both `sparsity` and `pattern`"],
        ),
        ("prune = { method = \"wanda\", sparsity = 0.5, damping = 0.1 }", &["key `damping`"]),
        ("prune = { method = \"sparsegpt\", sparsity = 0.5, damping = 0 }", &["`damping`", "above 0"]),
        ("prune = { method = \"obc\", sparsity = 0.5, shrinkage = 1.0 }", &["`shrinkage`", "below 1"]),
        ("quantize = { method = \"hqq\", bits = 4, shrinkage = 0.2 }", &["`shrinkage`", "the method `gptq`"]),
        ("prune = { method = \"sparsegpt\" }", &["needs `sparsity`"]),
        (
            "prune = { method = \"wanda\", pattern = \"2:4\", scope = \"erk\" }",
            &["`scope`", "nothing to allocate"],
        ),
        ("quantize = { bits = 8 }\nnames = [\"re:(\"]", &["pattern `re:(`", "unclosed group"]),
        ("quantize = { bits = 8 }\nnames = \"fc1\"", &["`names`", "must be a list of strings"]),
    ] {
        refused(step(text), &[parts, &["recipe.toml: "]].concat());
    }
}

/// What a layout cannot hold is said of the tensor.
#[test]
fn a_layout_that_does_not_fit_the_method() {
    let text = "prune = { method = \"n:m\", pattern = \"2:4\", layout = \"n:m\" }\n[[step]]\nprune = { method = \"rows\", \
                sparsity = 0.5, layout = \"n:m\" }";
    refused(step(text), &["step 2, `prune`: `layout`", "`n:m` needs a `pattern`"]);
}

#[test]
fn presets_that_are_none() {
    let source = folder(&mixed(DType::F32), None);
    for (preset, parts) in [
        ("int1", &["unknown preset `int1`", "did you mean `int"][..]),
        ("int9", &["unknown preset `int9`", "did you mean `int"]),
        ("itn8", &["unknown preset `itn8`", "did you mean `int8`?", "N:M"]),
        ("fp32", &["unknown preset `fp32`", "did you mean `fp"]),
        ("", &["unknown preset ``"]),
        ("int8+", &["unknown preset ``"]),
        ("0:4", &["`0:4`", "1 ≤ N ≤ M ≤ 16"]),
        ("5:4", &["`5:4`", "1 ≤ N ≤ M ≤ 16"]),
        ("3:17", &["`3:17`", "1 ≤ N ≤ M ≤ 16"]),
        ("a:b", &["`a:b`", "1 ≤ N ≤ M ≤ 16"]),
        ("100%", &["sparsity is 1,", "below 1"]),
        ("-5%", &["sparsity is -0.05", "at least 0"]),
        ("1e3%-global", &["sparsity is 10,"]),
        ("nan%", &["sparsity is NaN"]),
        ("half%", &["`half` is no number"]),
        ("2:4+50%", &["`2:4+50%`", "at most one"]),
        ("int8+int4", &["`int8+int4`", "at most one"]),
    ] {
        refuses(source.path(), &[&format!("--preset={preset}")], parts);
    }
    for preset in ["fp16", "2:4", "50%"] {
        refuses(source.path(), &["--preset", preset, "--group-size", "64"], &[preset, "group size", "int4"]);
    }
}

#[test]
fn steps_and_patterns_that_name_nothing() {
    let source = folder(&decoder(DType::F32), Some(&architectures()));
    let path = source.path().to_str().unwrap();
    let recipes = Folder::new();
    let recipe = recipes.put(
        "conv.toml",
        step("quantize = { bits = 8 }") + &step("classes = [\"conv\"]\nquantize = { bits = 4 }"),
    );
    let parts = [path, "step 2 of the recipe matches no tensor", "3 linear, 1 embedding, 1 norm"];
    refuses(source.path(), &["--recipe", recipe.to_str().unwrap()], &parts);
    let recipe = recipes.put("name.toml", step("names = [\"*.up_proj\"]\nquantize = { bits = 8 }"));
    refuses(
        source.path(),
        &["--recipe", recipe.to_str().unwrap()],
        &[path, "step 1 of the recipe matches no tensor"],
    );
    let parts =
        [path, "ignore pattern `model.layers.0.down_prj` matches no tensor", "`model.layers.0.down_proj`"];
    refuses(source.path(), &["--preset", "int8", "--ignore", "model.layers.0.down_prj"], &parts);
    refuses(source.path(), &["--preset", "int8", "--ignore", "re:["], &["pattern `re:[`"]);
    let recipe =
        recipes.put("ignore.toml", format!("ignore = [\"lm_heads\"]\n{}", step("quantize = { bits = 8 }")));
    refuses(
        source.path(),
        &["--recipe", recipe.to_str().unwrap()],
        &[path, "`lm_heads` matches no tensor", "`lm_head`"],
    );
}

#[test]
fn pruning_comes_before_quantizing() {
    let recipe = step("quantize = { bits = 8 }")
        + &step("names = [\"conv\"]\nprune = { method = \"n:m\", pattern = \"2:4\" }");
    refused(
        recipe,
        &["`conv.weight`", "step 2 prunes what step 1 already quantized", "put the pruning step first"],
    );
}
