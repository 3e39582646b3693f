//! `CHAOS.md` and the program have the same faults and profiles.

#![allow(clippy::unwrap_used, missing_docs)]

use mainstay_chaos::{Kind, Profile, ScenarioFile};

const DOCUMENT: &str = include_str!("CHAOS.md");

/// The rows of the table below this heading.
fn rows(heading: &str) -> Vec<&'static str> {
    let section = DOCUMENT.split_once(&format!("\n## {heading}\n")).unwrap().1;
    let section = section.split("\n## ").next().unwrap();
    section.lines().filter(|line| line.starts_with("| `")).collect()
}

#[test]
fn the_table_of_faults_is_that_of_the_program() {
    let field = |kind: &Kind, name: &str| match kind.required.contains(&name) {
        true => format!("**`{name}`**"),
        false => format!("`{name}`"),
    };
    let row = |kind: Kind| {
        let fields: Vec<String> = kind.parameters.iter().map(|name| field(&kind, name)).collect();
        format!("| `{}` | {} | {} |", kind.name, kind.about, fields.join(", ")).replace(" |  |", " | |")
    };
    assert_eq!(rows("Faults"), Kind::ALL.map(row));
}

#[test]
fn the_table_of_profiles_is_that_of_the_program() {
    let row =
        |profile: Profile| format!("| `{}` | {} | {} |", profile.name, profile.about(), profile.source());
    assert_eq!(rows("Profiles"), Profile::ALL.map(row));
}

#[test]
fn the_scenario_files_of_the_document_are_valid() {
    let blocks: Vec<&str> =
        DOCUMENT.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        ScenarioFile::parse_toml(block).unwrap_or_else(|error| panic!("{error} in\n{block}"));
    }
}
