//! Which files of the TypeScript packages use which: what follows `from` is used, be it types alone, and so is what is exported
//! from there.

use std::collections::BTreeSet;
use std::fs;

use regex::Regex;

use crate::Result;

use super::Uses;

/// What each file uses.
pub(super) fn uses(paths: &[String]) -> Result<Uses> {
    let is_ours = |path: &&String| path.starts_with("clients/") && path.ends_with(".ts");
    let read = |path: &String| Ok((path.clone(), used(path, &fs::read_to_string(path)?)));
    paths.iter().filter(is_ours).map(read).collect()
}

/// The files that a text takes from by relative names. A name ends as the compiled file's does.
fn used(path: &str, text: &str) -> BTreeSet<String> {
    #[expect(clippy::expect_used, reason = "the pattern is constant")]
    let from = Regex::new(r#"(?m)^(?:import|export|\}).*\bfrom "(\.[^"]+)\.js";"#).expect("a pattern");
    from.captures_iter(text).map(|found| joined(path, &found[1]) + ".ts").collect()
}

/// `name`, which is relative to the folder of `path`, from the root.
fn joined(path: &str, name: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in name.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_and_an_export_from_a_file_are_uses_and_a_package_is_none() {
        let text = "import type { A } from \"./a.js\";\nimport {\n  b,\n} from \"../deep/b.js\";\n\
                    export { c } from \"./c.js\";\nimport ws from \"ws\";\n// from \"./d.js\";\n";
        let found = used("clients/x/src/main.ts", text);
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            ["clients/x/deep/b.ts", "clients/x/src/a.ts", "clients/x/src/c.ts"]
        );
    }
}
