use tersor::report::verification_table;
use tersor::{VerifyOptions, verify};

use super::args::VerifyArgs;
use super::output::Output;
use super::{Failure, Outcome};

pub(super) fn run(args: &VerifyArgs, output: &Output) -> Result<Outcome, Failure> {
    let options = VerifyOptions { max_relative_error: args.max_relative_error };
    let verification = verify(&args.source, &args.output, options)?;
    let failures = verification.failures().count();
    let summary = match failures {
        0 => format!("\nall {} tensors are as they should be", verification.checks.len()),
        n => format!("\n{n} of {} tensors differ from what they should be", verification.checks.len()),
    };
    output.print(&verification, &verification_table(&verification), &summary)?;
    Ok(if failures == 0 { Outcome::Done } else { Outcome::Different })
}
