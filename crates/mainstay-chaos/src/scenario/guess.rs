//! The name that was probably meant.

/// A name within this many edits of a known one is a misspelling of it.
const MAX_EDITS: usize = 2;

/// A longer name is no misspelling.
const LONGEST: usize = 64 + MAX_EDITS;

/// What other tools call the same.
const SYNONYMS: [(&str, &str); 24] = [
    ("blackhole", "black-hole"),
    ("half-open", "black-hole"),
    ("timeout", "black-hole"),
    ("drop", "black-hole"),
    ("reset-peer", "reset"),
    ("rst", "reset"),
    ("close", "fin"),
    ("down", "refuse"),
    ("latency", "delay"),
    ("slicer", "trickle"),
    ("slice", "trickle"),
    ("limit-data", "cut-after"),
    ("throttle", "bandwidth"),
    ("503", "status"),
    ("freeze", "stall"),
    ("type", "kind"),
    ("fault", "kind"),
    ("name", "kind"),
    ("duration", "for"),
    ("lasts", "for"),
    ("rate", "share"),
    ("probability", "share"),
    ("toxicity", "share"),
    ("delay", "latency"),
];

/// Returns the known name that was probably meant.
pub(super) fn meant<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    // No known name has more than 64 letters, and the distance to a name of a megabyte takes seconds.
    if name.len() > LONGEST {
        return None;
    }
    let name = name.to_ascii_lowercase().replace(['_', ' '], "-");
    let is_synonym = |ours: &&&str| SYNONYMS.contains(&(name.as_str(), **ours));
    if let Some(ours) = known.iter().find(is_synonym) {
        return Some(ours);
    }
    let nearest = known.iter().map(|known| (strsim::osa_distance(known, &name), *known)).min();
    nearest.filter(|(edits, _)| *edits <= MAX_EDITS.min(name.chars().count() / 2)).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelling_and_the_name_of_another_tool_are_understood() {
        let known = ["black-hole", "reset", "trickle", "delay"];
        for (written, expected) in [
            ("blackhole", Some("black-hole")),
            ("black_hole", Some("black-hole")),
            ("Reset", Some("reset")),
            ("rset", Some("reset")),
            ("slicer", Some("trickle")),
            ("latency", Some("delay")),
            ("x", None),
            ("something", None),
            (&"x".repeat(1 << 20), None),
        ] {
            assert_eq!(meant(written, &known), expected, "{written}");
        }
    }
}
