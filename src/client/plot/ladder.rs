//! Messages between two parties as a ladder: time goes down, a message is an arrow from one line to the other.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Area, Drawn, LINE, MARGIN, SMALL, WIDTH, colour, fitting, page, write_notes};

/// Where the lines of both parties stand.
const LINES: [i32; 2] = [240, WIDTH - 240];
/// How far an arrow falls, and how long its head is.
const FALL: i32 = 10;
const HEAD: i32 = 9;

/// What stands in a ladder, from top to bottom.
#[derive(Clone, Debug)]
pub enum Rung {
    /// A line of text over the whole width.
    Heading(String),
    /// A message: whether it goes to the right, what stands on it, and when it was sent. One of a second kind is
    /// drawn in another colour.
    Arrow {
        /// From the first party to the second.
        to_right: bool,
        /// What is written on it.
        text: String,
        /// What is written where it begins.
        time: String,
        /// Whether it was sent before.
        again: bool,
    },
    /// What both parties are from here on.
    States([String; 2]),
}

impl Rung {
    fn height(&self) -> i32 {
        match self {
            Self::Heading(_) => LINE * 5 / 4,
            Self::Arrow { .. } => LINE * 3 / 2,
            Self::States(_) => LINE * 3 / 2,
        }
    }
}

/// Draws a ladder between two parties, with a title over it and notes under it.
pub fn ladder(title: &str, parties: [&str; 2], rungs: &[Rung], notes: &[String]) -> String {
    let top = 3 * LINE;
    let bottom = top + rungs.iter().map(Rung::height).sum::<i32>() + LINE / 2;
    let height = bottom + notes.len() as i32 * LINE + LINE;
    page(title, height, |root| {
        let middle = Pos::new(HPos::Center, VPos::Center);
        for (x, party) in LINES.into_iter().zip(parties) {
            write(root, fitting(party, SMALL), (x, top - LINE / 2), middle)?;
            // A heading leaves a gap in the lines.
            let mut y = top;
            for rung in rungs {
                let next = y + rung.height();
                if !matches!(rung, Rung::Heading(_)) {
                    root.draw(&PathElement::new([(x, y), (x, next)], BLACK.stroke_width(1)))?;
                }
                y = next;
            }
        }
        let mut y = top;
        for rung in rungs {
            rung.draw(root, y)?;
            y += rung.height();
        }
        write_notes(&root.split_vertically(bottom).1, notes)
    })
}

impl Rung {
    fn draw(&self, root: &Area, y: i32) -> Drawn {
        match self {
            Self::Heading(text) => {
                let left = Pos::new(HPos::Left, VPos::Center);
                write(root, fitting(text, SMALL), (MARGIN, y + LINE * 5 / 8), left)
            }
            Self::Arrow { to_right, text, time, again } => {
                let (from, to) =
                    if *to_right { (LINES[0], LINES[1]) } else { (LINES[1], LINES[0]) };
                let (start, end) = (y + LINE, y + LINE + FALL);
                let style = colour(usize::from(*again)).stroke_width(2);
                root.draw(&PathElement::new([(from, start), (to, end)], style))?;
                let back = if *to_right { -HEAD } else { HEAD };
                let head = [(to, end), (to + back, end - 5), (to + back, end + 4)];
                root.draw(&Polygon::new(head, colour(usize::from(*again)).filled()))?;
                let middle = (LINES[0] + LINES[1]) / 2;
                let above = Pos::new(HPos::Center, VPos::Bottom);
                write(root, text.clone(), (middle, y + LINE * 9 / 10), above)?;
                let side = if *to_right { HPos::Right } else { HPos::Left };
                let x = from + if *to_right { -8 } else { 8 };
                write(root, time.clone(), (x, start), Pos::new(side, VPos::Center))
            }
            Self::States(states) => {
                for ((x, side), state) in
                    LINES.into_iter().zip([HPos::Right, HPos::Left]).zip(states)
                {
                    let y = y + LINE * 3 / 4;
                    let x = x + if matches!(side, HPos::Right) { -8 } else { 8 };
                    let style = ("sans-serif", SMALL.1).into_font().style(FontStyle::Bold);
                    let style = style.color(&BLACK).pos(Pos::new(side, VPos::Center));
                    root.draw(&Text::new(state.clone(), (x, y), style))?;
                }
                Ok(())
            }
        }
    }
}

fn write(root: &Area, text: String, place: (i32, i32), anchor: Pos) -> Drawn {
    let style = SMALL.into_font().color(&BLACK).pos(anchor);
    root.draw(&Text::new(text, place, style))
}
