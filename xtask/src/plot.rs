//! What guards add to operations, as a picture.

use std::{io, path::Path};

use anyhow::{Result, anyhow};
use plotters::{coord::Shift, drawing::DrawingAreaErrorKind, prelude::*};

/// The size of a picture of one guest, pixels.
const WIDTH: u32 = 640;
const HEIGHT: u32 = 360;
/// How many stand side by side.
const COLUMNS: usize = 2;

/// What is added to an operation, percent of what it takes without us.
pub(crate) struct Bar {
    pub(crate) operation: String,
    pub(crate) by_empty: f64,
    pub(crate) by_guard: f64,
}

/// All bars of a guest.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) bars: Vec<Bar>,
}

/// Draws them into an SVG file.
pub(crate) fn draw(path: &Path, panels: &[Panel]) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| anyhow!("draw {}: {error}", path.display());
    let rows = panels.len().div_ceil(COLUMNS);
    let size = (WIDTH * COLUMNS as u32, HEIGHT * rows as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let most = panels
        .iter()
        .flat_map(|panel| &panel.bars)
        .map(|bar| bar.by_guard.max(bar.by_empty))
        .fold(1.0, f64::max);
    for (area, panel) in root.split_evenly((rows, COLUMNS)).iter().zip(panels) {
        draw_panel(area, panel, most).map_err(|error| failed(&error))?;
    }
    root.present().map_err(|error| failed(&error))
}

/// Draws a panel whose axis goes to `most` percent.
fn draw_panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    panel: &Panel,
    most: f64,
) -> Result<(), DrawingAreaErrorKind<io::Error>> {
    let count = panel.bars.len();
    let name = |place: &f64| {
        let bar = panel.bars.get(place.round() as usize);
        bar.map_or_else(String::new, |bar| bar.operation.clone())
    };
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(190)
        .build_cartesian_2d(0.0..most * 1.02, (count as f64 - 0.5)..-0.5)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .x_max_light_lines(0)
        .y_labels(count)
        .y_label_formatter(&name)
        .x_desc("% more instructions")
        .draw()?;
    for (label, color, place, value) in [
        (
            "empty programs",
            RGBColor(150, 150, 150),
            -0.2,
            (|bar| bar.by_empty) as fn(&Bar) -> f64,
        ),
        ("a guard", RGBColor(30, 90, 170), 0.2, |bar| bar.by_guard),
    ] {
        let bars = panel.bars.iter().enumerate().map(|(number, bar)| {
            let middle = number as f64 + place;
            let corners = [(0.0, middle - 0.2), (value(bar), middle + 0.2)];
            Rectangle::new(corners, color.filled())
        });
        chart
            .draw_series(bars)?
            .label(label)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], color.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .border_style(BLACK)
        .background_style(WHITE)
        .draw()?;
    Ok(())
}
