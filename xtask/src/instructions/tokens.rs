//! What the check of a JSON Web Token costs the gateway, beside a bare verification by `jsonwebtoken`.

use crate::Result;
use crate::run::output;

use super::{callgrind, instructions};

const TOKEN_CHECK: &str = "target/release/token_check";
/// Algorithms, and how often a token is checked: a signature on a curve takes a hundred times as long.
const ALGORITHMS: [(&str, u64); 2] = [("HS256", 2_000), ("ES256", 50)];
/// The most that the gateway's check may cost, relative to the bare one.
const RATIO: f64 = 1.3;

/// Counts, prints, and returns the lines of those that are above the limit.
pub(super) fn above() -> Result<Vec<String>> {
    let mut above = Vec::new();
    for (algorithm, count) in ALGORITHMS {
        let each = |check: &str| -> Result<f64> {
            let (none, all) = (run(check, algorithm, 0)?, run(check, algorithm, count)?);
            Ok(all.saturating_sub(none) as f64 / count as f64)
        };
        let (bare, ours) = (each("bare")?, each("gateway")?);
        let ratio = ours / bare;
        let line = format!(
            "{algorithm}, check of a token: {ours:.0} instructions, {ratio:.3} times the {bare:.0} of jsonwebtoken, at most {RATIO}"
        );
        println!("{line}");
        above.extend((ratio.is_nan() || ratio > RATIO).then_some(line));
    }
    Ok(above)
}

fn run(check: &str, algorithm: &str, count: u64) -> Result<u64> {
    output(callgrind().args([TOKEN_CHECK, check, algorithm, &count.to_string()]))?;
    instructions()
}
