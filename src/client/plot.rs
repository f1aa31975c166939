//! Curves as a drawing: SVG for light and for dark backgrounds that needs nothing else.

mod ladder;
mod rows;

use std::io;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

pub use ladder::{Rung, ladder};
pub use rows::{Block, Row, rows};

const WIDTH: i32 = 860;
const MARGIN: i32 = 20;
/// The width that a line of text may have, and the height of one of the legend or of the notes.
const ROOM: i32 = 780;
const LINE: i32 = 20;
const PANEL: i32 = 330;

const FONT: &str = "system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif";
const LARGE: (&str, i32) = ("sans-serif", 20);
const SMALL: (&str, i32) = ("sans-serif", 15);

/// The colours of the series on light and on dark backgrounds.
const LIGHT: [u32; 12] = [
    0x0064b4, 0xc44d00, 0x00785a, 0x9b3d85, 0x7d6200, 0x5a5f66, 0xc4183c, 0x1a8fb8, 0x5b3fd0,
    0x559000, 0xe0509a, 0x7a4a2b,
];
const DARK: [u32; LIGHT.len()] = [
    0x5ab0ff, 0xff9b50, 0x3fd0a0, 0xe79ad0, 0xe3c04a, 0xb4bcc4, 0xff6272, 0x6fe0f5, 0xa98fff,
    0xa8dc4b, 0xff5fb8, 0xc08a66,
];
/// Shapes of points; they tell apart what colours do not.
const SHAPES: [&[(i32, i32)]; 4] = [
    &[(-2, -5), (2, -5), (5, -2), (5, 2), (2, 5), (-2, 5), (-5, 2), (-5, -2)],
    &[(-4, -4), (4, -4), (4, 4), (-4, 4)],
    &[(0, -5), (5, 4), (-5, 4)],
    &[(0, -6), (6, 0), (0, 6), (-6, 0)],
];
/// A curve of more points is a line alone, and one of many a thin one.
const MARKED: usize = 30;
const MANY: usize = 240;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn = Result<(), DrawingAreaErrorKind<io::Error>>;

/// Curves over the same axes.
#[derive(Debug)]
pub struct Panel {
    /// What goes up.
    pub title: &'static str,
    /// What goes to the right.
    pub below: &'static str,
    /// The horizontal axis.
    pub across: Axis,
    /// The vertical axis.
    pub up: Axis,
    /// Later ones cover earlier ones.
    pub curves: Vec<Curve>,
}

/// What an axis is like; its ends follow from the values.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    /// In decades, without a place for what is not positive; else from zero.
    pub logarithmic: bool,
    /// The text at a mark.
    pub label: fn(f64) -> String,
}

/// A line through points.
#[derive(Clone, Debug)]
pub struct Curve {
    /// The index of its name.
    pub series: usize,
    /// Whether its line is dashed.
    pub dashed: bool,
    /// From left to right: `x`, and `y` with the ends of its bar before and after it. A point without a place
    /// is a gap in the line.
    pub points: Vec<(f64, [f64; 3])>,
}

/// Draws panels two by two, with a title and a legend over them and notes under them.
pub fn svg(title: &str, names: &[&str], panels: &[Panel], notes: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| fitting(name, SMALL)).collect();
    let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let entry = 48 + longest as i32 * SMALL.1 / 2;
    let columns = ((WIDTH - MARGIN) / entry) as usize;
    let top = (2 + names.len().div_ceil(columns) as i32) * LINE;
    let rows = panels.len().div_ceil(2);
    let height = top + rows as i32 * PANEL + (notes.len() as i32 + 1) * LINE;
    page(title, height, |root| {
        for (series, name) in names.into_iter().enumerate() {
            let x = MARGIN + (series % columns) as i32 * entry;
            let y = (series / columns) as i32 * LINE + 5 * LINE / 2;
            root.draw(&PathElement::new([(x, y), (x + 26, y)], colour(series).stroke_width(2)))?;
            root.draw(&(EmptyElement::at((x + 13, y)) + marker(series)))?;
            root.draw(&Text::new(name, (x + 33, y - 6), SMALL))?;
        }
        let (_, below) = root.split_vertically(top);
        let (middle, bottom) = below.split_vertically(rows as i32 * PANEL);
        for (row, area) in panels.chunks(2).zip(middle.split_evenly((rows, 1))) {
            for (panel, area) in row.iter().zip(area.split_evenly((1, row.len()))) {
                panel.draw(&area)?;
            }
        }
        write_notes(&bottom, notes)
    })
}

/// Draws on a page of this height, below its title.
fn page(title: &str, height: i32, draw: impl FnOnce(&Area) -> Drawn) -> String {
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32));
    let root = root.into_drawing_area();
    let all = || {
        root.fill(&WHITE)?;
        root.draw(&Text::new(fitting(title, LARGE), (MARGIN, LINE / 2), LARGE))?;
        draw(&root)?;
        root.present()
    };
    all().expect("a String takes everything");
    drop(root);
    svg.replacen(">\n", &format!(" role=\"img\">\n<style>\n{}</style>\n", style()), 1)
}

fn write_notes(area: &Area, notes: &[String]) -> Drawn {
    notes.iter().zip(0..).try_for_each(|(note, index)| {
        area.draw(&Text::new(fitting(note, SMALL), (MARGIN, index * LINE), SMALL))
    })
}

impl Panel {
    fn draw(&self, area: &Area) -> Drawn {
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        let (across, columns) = self.across.range(points().map(|&(x, _)| x));
        let (up, rows) = self.up.range(points().flat_map(|&(_, ys)| ys));
        let columns = columns.min(self.across.fitting(&across, columns, area));
        let mut chart = ChartBuilder::on(area)
            .caption(self.title, SMALL)
            .margin(MARGIN / 2)
            .margin_right(MARGIN)
            .x_label_area_size(2 * LINE)
            .y_label_area_size(7 * LINE / 2)
            .build_cartesian_2d(across, up)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .label_style(SMALL)
            .x_labels(columns)
            .y_labels(rows)
            .x_label_formatter(&|&place| self.across.label(place))
            .y_label_formatter(&|&place| self.up.label(place))
            .x_desc(self.below)
            .draw()?;
        self.curves.iter().try_for_each(|curve| self.curve(&mut chart, curve))
    }

    fn curve(&self, chart: &mut Chart, curve: &Curve) -> Drawn {
        let is_marked = curve.points.len() <= MARKED;
        let style =
            colour(curve.series).stroke_width(if curve.points.len() <= MANY { 2 } else { 1 });
        let place = |&(x, ys): &(f64, [f64; 3])| {
            let (x, ys) = (self.across.place(x), ys.map(|y| self.up.place(y)));
            (x.is_finite() && ys.iter().all(|y| y.is_finite())).then_some((x, ys))
        };
        let places: Vec<_> = curve.points.iter().map(place).collect();
        for part in places.split(Option::is_none).filter(|part| !part.is_empty()) {
            let points = part.iter().flatten().copied();
            let line = points.clone().map(|(x, [_, y, _])| (x, y));
            match curve.dashed {
                true => chart.draw_series(DashedLineSeries::new(line.clone(), 5, 4, style))?,
                false => chart.draw_series(LineSeries::new(line.clone(), style))?,
            };
            // One alone would not be seen.
            if !is_marked && part.len() != 1 {
                continue;
            }
            let bars = points.map(|(x, [low, _, high])| [(x, low), (x, high)]);
            chart.draw_series(bars.map(|bar| PathElement::new(bar, style)))?;
            chart.draw_series(line.map(|place| EmptyElement::at(place) + marker(curve.series)))?;
        }
        Ok(())
    }
}

impl Axis {
    fn place(self, value: f64) -> f64 {
        if self.logarithmic { value.log10() } else { value }
    }

    fn label(self, place: f64) -> String {
        (self.label)(if self.logarithmic { 10_f64.powf(place) } else { place })
    }

    /// A range of places that holds all values and a little more, and how many marks it has.
    fn range(self, values: impl Iterator<Item = f64> + Clone) -> (Range<f64>, usize) {
        let places = values.map(|value| self.place(value)).filter(|place| place.is_finite());
        let high = places.clone().reduce(f64::max);
        let high = high.filter(|&high| high >= 1.0 || (high > 0.0 && !self.logarithmic));
        let high = high.unwrap_or(1.0);
        let low = places.fold(high, f64::min);
        // A value over a mark by an error of rounding needs no further decade.
        let high = if self.logarithmic { (high - 1e-9).ceil() } else { high };
        let low = if self.logarithmic { low.min(high - 1.0).floor() } else { 0.0 };
        let marks = if self.logarithmic { (high - low) as usize + 1 } else { 8 };
        let edge = (high - low) * 0.04;
        (low - edge..high + edge, marks)
    }

    /// How many of the marks of a horizontal axis have room for their labels.
    fn fitting(self, range: &Range<f64>, marks: usize, area: &Area) -> usize {
        let labels = RangedCoordf64::from(range.clone()).key_points(marks);
        let labels = labels.into_iter().map(|place| self.label(place).chars().count());
        let longest = labels.max().unwrap_or(0) as u32 * SMALL.1 as u32 / 2;
        let width = area.dim_in_pixel().0.saturating_sub(5 * LINE as u32);
        (width / (longest + SMALL.1 as u32)).max(2) as usize
    }
}

fn colour(series: usize) -> RGBColor {
    let [_, red, green, blue] = LIGHT[series % LIGHT.len()].to_be_bytes();
    RGBColor(red, green, blue)
}

fn marker(series: usize) -> Polygon<(i32, i32)> {
    Polygon::new(SHAPES[series % SHAPES.len()], colour(series).filled())
}

/// The font, and for dark backgrounds the counterpart of each colour.
fn style() -> String {
    let counterpart = |(light, dark): (u32, u32)| {
        let rule = |what| format!("[{what}='#{light:06X}']{{{what}:#{dark:06x}}}");
        rule("fill") + &rule("stroke") + "\n"
    };
    let others = [(0xffffff, 0x0d1117), (0x000000, 0xe6edf3)];
    let dark: String = LIGHT.into_iter().zip(DARK).chain(others).map(counterpart).collect();
    format!("text{{font-family:{FONT}}}\n@media(prefers-color-scheme:dark){{\n{dark}}}")
}

/// As much of a text as fits in a line, with characters that XML can have.
fn fitting(text: &str, (_, size): (&str, i32)) -> String {
    let is_bad = |c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}');
    let fitting: String = text.chars().take((ROOM * 2 / size) as usize).collect();
    let end = if fitting == text { "" } else { "…" };
    fitting.replace(is_bad, "\u{fffd}") + end
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn axis(logarithmic: bool) -> Axis {
        Axis { logarithmic, label: |value| value.to_string() }
    }

    /// The marks of an axis for these values.
    fn marks(logarithmic: bool, values: &[f64]) -> Vec<f64> {
        let (range, marks) = axis(logarithmic).range(values.iter().copied());
        RangedCoordf64::from(range).key_points(marks)
    }

    /// Draws one curve for each name, with values that have no place among its points.
    fn drawn(names: &[&str]) -> String {
        let points = vec![
            (1.0, [0.0, 1.0, 2.0]),
            (10.0, [5.0, 10.0, 20.0]),
            (0.0, [1.0; 3]),
            (20.0, [f64::NAN; 3]),
            (-1.0, [f64::INFINITY; 3]),
        ];
        let curve = |series| Curve { series, dashed: series % 2 > 0, points: points.clone() };
        let curves = (0..names.len()).map(curve).collect();
        let panel =
            Panel { title: "up", below: "across", across: axis(true), up: axis(false), curves };
        let notes: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        svg(&names.concat(), names, &[panel], &notes)
    }

    /// The text of all elements.
    fn texts(svg: &str) -> Vec<&str> {
        let texts = svg.split("<text ").skip(1).filter_map(|text| text.split(['>', '<']).nth(1));
        texts.map(str::trim).collect()
    }

    #[test]
    fn decades_hold_all_values() {
        assert_eq!(marks(true, &[12.0, 800.0]), [1.0, 2.0, 3.0]);
        assert_eq!(marks(true, &[1.0, 1000.0]), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(marks(true, &[1.0]), [0.0, 1.0]);
        assert_eq!(marks(true, &[]), [0.0, 1.0]);
        let million: Vec<f64> = (0..=6).map(f64::from).collect();
        assert_eq!(marks(true, &[1.0, 1e6, f64::NAN, 0.0]), million);
        assert_eq!([0.0, 3.0, 6.0].map(|place| axis(true).label(place)), ["1", "1000", "1000000"]);
    }

    #[test]
    fn marks_are_round_numbers() {
        assert_eq!(marks(false, &[190.0]), [0.0, 50.0, 100.0, 150.0]);
        assert_eq!(marks(false, &[1.2e6])[1], 200_000.0);
        assert_eq!(marks(false, &[0.19])[..3], [0.0, 0.05, 0.1]);
        assert_eq!(marks(false, &[0.0, f64::INFINITY]).last(), Some(&1.0));
    }

    #[test]
    fn labels_below_do_not_overlap() {
        let across = Axis { logarithmic: true, label: |value| format!("long {value}") };
        let points = vec![(1.0, [1.0; 3]), (1e9, [1.0; 3])];
        let curves = vec![Curve { series: 0, dashed: false, points }];
        let panel = || {
            let curves = curves.clone();
            Panel { title: "up", below: "across", across, up: axis(false), curves }
        };
        let labels = |panels: &[Panel]| {
            let svg = svg("title", &["name"], panels, &[]);
            texts(&svg).into_iter().filter(|text| text.starts_with("long")).count()
        };
        assert_eq!((labels(&[panel(), panel()]), labels(&[panel()])), (2 * 2, 5));
    }

    #[test]
    fn panels_are_two_in_a_row() {
        let panel = || {
            let (across, up) = (axis(false), axis(false));
            Panel { title: "up", below: "across", across, up, curves: vec![] }
        };
        let captions = |count| {
            let panels: Vec<Panel> = (0..count).map(|_| panel()).collect();
            let svg = svg("title", &[], &panels, &[]);
            let captions = svg.split("<text ").filter(|text| text.contains(">\nup\n"));
            let place = |text: &str, name: &str| {
                text.split(name).nth(1).unwrap().split('"').nth(1).unwrap().parse().unwrap()
            };
            captions.map(|text| [place(text, "x="), place(text, "y=")]).collect::<Vec<[i32; 2]>>()
        };
        let four = captions(4);
        assert_eq!((captions(2), &captions(3)[..2]), (four[..2].to_vec(), &four[..2]));
        assert!(four[0][0] + 400 < four[1][0] && four[0][1] == four[1][1], "{four:?}");
        assert!(four[0][1] + PANEL == four[2][1] && four[0][0] == four[2][0], "{four:?}");
        let one = captions(1);
        assert!(four[0][0] < one[0][0] && one[0][0] < four[1][0], "{one:?}");
    }

    #[test]
    fn what_has_no_place_is_left_out() {
        assert_eq!(drawn(&["a"]).matches("<polygon").count(), 1 + 2);
    }

    #[test]
    fn a_line_has_a_gap_where_a_point_has_no_place() {
        for (up, lines, marks) in [(1.0, 1, 0), (f64::NAN, 2, 1)] {
            let mut points: Vec<_> = (0..40).map(|x| (f64::from(x), [1.0; 3])).collect();
            (points[10].1, points[12].1) = ([up; 3], [up; 3]);
            let curves = vec![Curve { series: 0, dashed: false, points }];
            let panel =
                Panel { title: "up", below: "x", across: axis(false), up: axis(false), curves };
            let svg = svg("title", &[], &[panel], &[]);
            let drawn = svg.split('<').filter(|one| one.contains("0064B4\""));
            let long = |one: &&str| one.starts_with("polyline") && one.matches(',').count() > 2;
            assert_eq!(drawn.clone().filter(long).count(), lines, "{svg}");
            assert_eq!(drawn.filter(|one| one.starts_with("polygon")).count(), marks, "{svg}");
        }
    }

    #[test]
    fn names_cannot_break_the_drawing() {
        let svg = drawn(&["<a & b>", "\"]]>'\u{1}\u{ffff}"]);
        assert!(texts(&svg).contains(&"&lt;a &amp; b&gt;"), "{svg}");
        let elements =
            ["svg", "title", "style", "rect", "text", "line", "polyline", "polygon", "circle"];
        for tag in svg.split('<').skip(1) {
            let name = tag.trim_start_matches('/').split([' ', '>']).next().unwrap();
            assert!(elements.contains(&name), "<{tag}");
        }
        for entity in svg.split('&').skip(1) {
            let name = entity.split(';').next().unwrap();
            assert!(["amp", "lt", "gt", "quot", "apos"].contains(&name), "&{entity}");
        }
        assert!(!svg.contains(['\u{1}', '\u{ffff}']));
    }

    #[test]
    fn all_text_fits() {
        let names = ["w".repeat(200), "é".repeat(60)];
        let svg = drawn(&names.each_ref().map(|name| &**name));
        let longest = texts(&svg).into_iter().max_by_key(|text| text.chars().count()).unwrap();
        assert_eq!(longest, "w".repeat(104) + "…");
        assert!(texts(&svg).contains(&&*names[1]));
    }

    #[test]
    fn a_dozen_series_differ_on_light_and_on_dark() {
        let svg = drawn(&["name"; 12]);
        for colours in [LIGHT, DARK] {
            assert_eq!(BTreeSet::from(colours).len(), 12);
        }
        for (light, dark) in LIGHT.into_iter().zip(DARK) {
            assert!(svg.contains(&format!("=\"#{light:06X}\"")), "{light:x} is not used");
            let rule = format!("[fill='#{light:06X}']{{fill:#{dark:06x}}}[stroke=");
            assert!(svg.contains(&rule), "{rule}");
        }
    }
}
