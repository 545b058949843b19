use tersor::report::verification_table;
use tersor::{VerifyOptions, verify};

use super::args::VerifyArgs;
use super::output::Output;
use super::{Failure, Outcome};

pub(super) fn run(args: &VerifyArgs, output: &Output) -> Result<Outcome, Failure> {
    let options = VerifyOptions { max_relative_error: args.max_relative_error };
    let verification = verify(&args.source, &args.output, options)?;
    let (all, failures) = (verification.checks.len(), verification.failures().count());
    let verdict = match (failures, verification.changed().count()) {
        (0, 0) => format!("all {all} tensors are as they should be"),
        (0, changed) => format!(
            "{} of {all} tensors are as they should be; {changed} were changed on purpose: compare what the networks answer, with \
             `tersor eval {} --task agreement --reference {} --data TEXT`",
            all - changed,
            args.output.display(),
            args.source.display(),
        ),
        (n, _) => format!("{n} of {all} tensors differ from what they should be"),
    };
    let summary = format!("\n{verdict}");
    output.print(&verification, &verification_table(&verification), &summary)?;
    Ok(if failures == 0 { Outcome::Done } else { Outcome::Different })
}
