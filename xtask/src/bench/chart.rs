//! `performance.svg`: a panel of bars for each figure, readable on light and on dark pages.

use super::Results;
use super::field::{Server, is_ours};
use super::figures::{FIGURES, Figure, shown};

const PANEL: f64 = 460.0;
const ROW: f64 = 18.0;
const HEAD: f64 = 46.0;
/// The left edge of the bars, and the length of the longest.
const BARS: (f64, f64) = (172.0, 200.0);
/// If the ratio between the longest and the shortest bar is at least this, lengths are logarithms.
const WIDE: f64 = 30.0;

const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#1f2328}.title{font-weight:600;font-size:13px}.note{fill:#59636e}\
.peer{fill:#afb8c1}.ours{fill:#0969da}.name{text-anchor:end}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.note{fill:#9198a1}.peer{fill:#484f58}.ours{fill:#4493f8}}";

/// The whole picture.
pub(super) fn draw(servers: &[Server], results: &Results) -> String {
    let bars = |figure: &Figure| servers.iter().filter(|one| results.value(figure, one).is_some()).count();
    let figures: Vec<_> = FIGURES.iter().filter(|figure| bars(figure) > 0).collect();
    let height = HEAD + ROW * figures.iter().map(|figure| bars(figure)).max().unwrap_or(0) as f64 + 16.0;
    let rows = figures.len().div_ceil(2);
    let (width, total) = (2.0 * PANEL, height * rows as f64 + 8.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {total}\" width=\"{width}\" \
         height=\"{total}\" role=\"img\" aria-label=\"Figures of mainstay and its peers\">\n<style>{STYLE}</style>\n"
    );
    for (i, figure) in figures.into_iter().enumerate() {
        let (x, y) = ((i % 2) as f64 * PANEL, (i / 2) as f64 * height);
        svg += &format!("<g transform=\"translate({x},{y})\">\n{}</g>\n", panel(figure, servers, results));
    }
    svg + "</svg>\n"
}

fn panel(figure: &Figure, servers: &[Server], results: &Results) -> String {
    let values: Vec<_> = servers
        .iter()
        .filter_map(|server| results.value(figure, server).map(|(median, _)| (server, median / figure.per)))
        .collect();
    let scale = Lengths::of(values.iter().map(|(_, value)| *value));
    let better = if figure.more_is_better { "more is better" } else { "less is better" };
    let log = if scale.logarithmic { ", logarithmic" } else { "" };
    let mut out = format!(
        "<text class=\"title\" x=\"12\" y=\"22\">{}</text>\n\
         <text class=\"note\" x=\"12\" y=\"38\">{}, {better}{log}</text>\n",
        escaped(figure.title),
        escaped(figure.unit),
    );
    for (row, (server, value)) in values.iter().enumerate() {
        let y = HEAD + ROW * row as f64;
        let (class, length) = (if is_ours(server.name) { "ours" } else { "peer" }, scale.length(*value));
        let (start, text, end) = (BARS.0, y + 13.0, BARS.0 + length + 6.0);
        out += &format!(
            "<text class=\"name\" x=\"{:.0}\" y=\"{text:.0}\">{}</text>\
             <rect class=\"{class}\" x=\"{start:.0}\" y=\"{:.0}\" width=\"{length:.1}\" height=\"12\" rx=\"2\"/>\
             <text x=\"{end:.0}\" y=\"{text:.0}\">{}</text>\n",
            start - 6.0,
            escaped(server.name),
            y + 3.0,
            shown(*value),
        );
    }
    out
}

/// Maps values to lengths.
struct Lengths {
    most: f64,
    least: f64,
    logarithmic: bool,
}

impl Lengths {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let (mut most, mut least) = (f64::MIN_POSITIVE, f64::MAX);
        for value in values.filter(|value| *value > 0.0) {
            (most, least) = (most.max(value), least.min(value));
        }
        Self { most, least, logarithmic: most > WIDE * least }
    }

    /// The longest bar has the full length; on the logarithmic scale the shortest has a twentieth of it.
    fn length(&self, value: f64) -> f64 {
        let share = match self.logarithmic {
            false => value / self.most,
            true => 0.05 + 0.95 * (value / self.least).ln() / (self.most / self.least).ln(),
        };
        BARS.1 * share.clamp(0.01, 1.0)
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_follow_values_and_wide_ranges_their_logarithms() {
        let plain = Lengths::of([1.0, 4.0].into_iter());
        assert_eq!((plain.length(1.0), plain.length(4.0)), (50.0, 200.0));
        let wide = Lengths::of([1.0, 10_000.0].into_iter());
        assert!(wide.logarithmic);
        assert_eq!((wide.length(1.0), wide.length(10_000.0)), (10.0, 200.0));
        assert_eq!(wide.length(0.0), 2.0);
    }
}
