//! The part of Markdown that the checks need: fenced code blocks, links and headings.

/// A fenced code block.
pub(crate) struct Block {
    /// Number of the line that opens the fence, from 1.
    pub(crate) line: usize,
    /// The tag after the fence: `sh`, `rust`, ...; empty if there is none.
    pub(crate) tag: String,
    pub(crate) text: String,
    /// The text of `<!-- run: ... -->` in the last line before the block that is not blank.
    pub(crate) directive: Option<String>,
    /// The path in `<!-- file: ... -->` at the same place: the block is that file.
    pub(crate) file: Option<String>,
}

/// A document, cut into its code blocks and the lines outside them.
pub(crate) struct Document {
    pub(crate) blocks: Vec<Block>,
    prose: Vec<(usize, String)>,
}

impl Document {
    pub(crate) fn parse(text: &str) -> Self {
        let mut document = Self { blocks: Vec::new(), prose: Vec::new() };
        let mut lines = (1..).zip(text.lines());
        while let Some((number, line)) = lines.next() {
            let ticks = line.trim_start().chars().take_while(|c| *c == '`').count();
            if ticks < 3 {
                document.prose.push((number, line.to_owned()));
                continue;
            }
            let (fence, indent) = ("`".repeat(ticks), line.len() - line.trim_start().len());
            let tag =
                line.trim().trim_start_matches('`').split([' ', ',']).next().unwrap_or_default().to_owned();
            let inside = lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != fence);
            let text = inside.map(|line| format!("{}\n", line.get(indent..).unwrap_or_default())).collect();
            let directive = document.comment("run:");
            let file = document.comment("file:");
            document.blocks.push(Block { line: number, tag, text, directive, file });
        }
        document
    }

    /// The comment of this kind at the end of the prose since the last block.
    fn comment(&self, kind: &str) -> Option<String> {
        let since = self.blocks.last().map_or(0, |block| block.line);
        let mut prose = self.prose.iter().rev().take_while(|(number, _)| *number > since);
        let (_, last) = prose.find(|(_, line)| !line.trim().is_empty())?;
        let inner = last.trim().strip_prefix("<!--")?.strip_suffix("-->")?;
        Some(inner.trim().strip_prefix(kind)?.trim().to_owned())
    }

    /// Targets of `[text](target)` and `[name]: target` outside code, with their line numbers.
    pub(crate) fn links(&self) -> Vec<(usize, String)> {
        let mut links = Vec::new();
        for (number, line) in &self.prose {
            let line = without_code_spans(line);
            links
                .extend(line.split("](").skip(1).filter_map(|rest| target(rest.split(')').next()?, *number)));
            let definition = line.strip_prefix('[').and_then(|rest| rest.split_once("]: "));
            links.extend(definition.and_then(|(_, rest)| target(rest, *number)));
        }
        links
    }

    /// The anchors that headings make: lower case, no punctuation, hyphens for spaces.
    pub(crate) fn anchors(&self) -> Vec<String> {
        let headings = self.prose.iter().filter(|(_, line)| line.starts_with('#'));
        headings
            .map(|(_, line)| {
                let title = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
                title.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
            })
            .collect()
    }
}

/// A link's target without its title.
fn target(link: &str, number: usize) -> Option<(usize, String)> {
    link.split_whitespace().next().map(|target| (number, target.trim_matches(['<', '>']).to_owned()))
}

fn without_code_spans(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# About links: a `Page`
See [one](a.md), [two](b.md#c \"title\") and `[no](code.md)`.

[three]: d.md
<!-- run: skip, because -->

```sh
cat [x](y.md)
```
  ````text
  ```
  ````
";

    #[test]
    fn links_are_found_outside_code_only() {
        let links = Document::parse(PAGE).links();
        assert_eq!(links, [(2, "a.md".into()), (2, "b.md#c".into()), (4, "d.md".into())]);
    }

    #[test]
    fn blocks_carry_tag_text_and_the_directive_before_them() {
        let blocks = Document::parse(PAGE).blocks;
        let found: Vec<_> = blocks.iter().map(|b| (b.line, b.tag.as_str(), b.text.as_str())).collect();
        assert_eq!(found, [(7, "sh", "cat [x](y.md)\n"), (10, "text", "```\n")]);
        let directives: Vec<_> = blocks.iter().map(|block| block.directive.as_deref()).collect();
        assert_eq!(directives, [Some("skip, because"), None], "a directive is for one block");
    }

    #[test]
    fn a_comment_before_a_block_names_the_file_that_it_is() {
        let blocks =
            Document::parse("<!-- file: a.rs -->\n\n```rust,ignore\n1\n```\n\n```rust\n2\n```\n").blocks;
        let files: Vec<_> = blocks.iter().map(|block| block.file.as_deref()).collect();
        assert_eq!(files, [Some("a.rs"), None]);
        assert_eq!(blocks[0].directive, None);
    }

    #[test]
    fn headings_make_anchors() {
        assert_eq!(Document::parse(PAGE).anchors(), ["about-links-a-page"]);
    }
}
