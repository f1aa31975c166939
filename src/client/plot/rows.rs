//! Rows of bars over one axis of time, in blocks that stand below each other.

use plotters::coord::ranged1d::Ranged;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::{Area, Drawn, LINE, MARGIN, SMALL, WIDTH, colour, fitting, page, write_notes};

/// Where the rows begin, behind their names.
const LEFT: i32 = 130;
/// The height of a row, and of its bars.
const ROW: i32 = 18;
const BAR: i32 = 12;
/// The least distance of two notches.
const NOTCH: i32 = 4;

/// Rows that belong together.
#[derive(Clone, Debug)]
pub struct Block {
    /// What stands above them.
    pub title: String,
    /// From top to bottom.
    pub rows: Vec<Row>,
}

/// What happened to one thing over time.
#[derive(Clone, Debug)]
pub struct Row {
    /// What stands before it.
    pub name: &'static str,
    /// The index of the name of each bar, and where it begins and ends: from 0 on.
    pub bars: Vec<(usize, [f64; 2])>,
    /// Where its bars have a notch.
    pub notches: Vec<f64>,
}

/// Draws blocks, with a title and a legend over them, and the axis with its name and notes under them. Bars of
/// the first name are pale.
pub fn rows(
    title: &str,
    names: &[&str],
    blocks: &[Block],
    (below, label): (&str, fn(f64) -> String),
    notes: &[String],
) -> String {
    let heights: Vec<i32> =
        blocks.iter().map(|block| 3 * LINE / 2 + ROW * block.rows.len() as i32).collect();
    let top = 4 * LINE;
    let bottom = top + heights.iter().sum::<i32>();
    let height = bottom + notes.len() as i32 * LINE + 7 * LINE / 2;
    let bars = || blocks.iter().flat_map(|block| &block.rows).flat_map(|row| &row.bars);
    let end = bars().map(|(_, [_, end])| *end).filter(|end| end.is_finite()).fold(0.0, f64::max);
    let axis = Scale { end: if end > 0.0 { end } else { 1.0 } };
    page(title, height, |root| {
        legend(root, names)?;
        axis.draw(root, [top, bottom], below, label)?;
        let mut y = top;
        for (block, height) in blocks.iter().zip(heights) {
            root.draw(&Text::new(fitting(&block.title, SMALL), (LEFT, y + 6), SMALL))?;
            for (row, index) in block.rows.iter().zip(0..) {
                axis.row(root, row, y + 5 * LINE / 4 + index * ROW)?;
            }
            y += height;
        }
        write_notes(&root.split_vertically(bottom + 3 * LINE).1, notes)
    })
}

fn legend(root: &Area, names: &[&str]) -> Drawn {
    let mut x = LEFT;
    for (series, name) in names.iter().enumerate() {
        root.draw(&bar(series, [x, x + 26], 5 * LINE / 2 - BAR / 2))?;
        root.draw(&Text::new(fitting(name, SMALL), (x + 33, 5 * LINE / 2 - 6), SMALL))?;
        x += 60 + name.chars().count() as i32 * SMALL.1 / 2;
    }
    Ok(())
}

fn bar(series: usize, [from, to]: [i32; 2], y: i32) -> Rectangle<(i32, i32)> {
    let style = if series == 0 { colour(5).mix(0.3) } else { colour(series - 1).mix(1.0) };
    Rectangle::new([(from, y), (to.max(from + 1), y + BAR)], style.filled())
}

/// From zero to the end of the last bar.
#[derive(Clone, Copy)]
struct Scale {
    end: f64,
}

impl Scale {
    fn place(self, value: f64) -> i32 {
        LEFT + (value / self.end * f64::from(WIDTH - LEFT - MARGIN)) as i32
    }

    fn draw(
        self,
        root: &Area,
        [top, bottom]: [i32; 2],
        name: &str,
        label: fn(f64) -> String,
    ) -> Drawn {
        for mark in RangedCoordf64::from(0.0..self.end).key_points(8) {
            let x = self.place(mark);
            let line = PathElement::new([(x, top), (x, bottom)], BLACK.mix(0.15));
            root.draw(&line)?;
            let text = label(mark);
            let half = text.chars().count() as i32 * SMALL.1 / 4;
            root.draw(&Text::new(text, (x - half, bottom + 6), SMALL))?;
        }
        let half = name.chars().count() as i32 * SMALL.1 / 4;
        let middle = i32::midpoint(LEFT, WIDTH - MARGIN);
        root.draw(&Text::new(name.to_owned(), (middle - half, bottom + 3 * LINE / 2), SMALL))
    }

    fn row(self, root: &Area, row: &Row, y: i32) -> Drawn {
        root.draw(&Text::new(row.name, (MARGIN, y - 1), SMALL))?;
        for (series, ends) in &row.bars {
            root.draw(&bar(*series, ends.map(|end| self.place(end)), y))?;
        }
        let mut last = LEFT;
        for x in row.notches.iter().map(|notch| self.place(*notch)) {
            // Closer together, they would hide the bar.
            if x >= last + NOTCH {
                root.draw(&PathElement::new([(x, y), (x, y + BAR)], WHITE))?;
                last = x;
            }
        }
        Ok(())
    }
}
