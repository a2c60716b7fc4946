//! Pictures of bars.

use std::{io, path::Path};

use anyhow::{Result, anyhow};
pub(crate) use plotters::chart::SeriesLabelPosition;
use plotters::{coord::Shift, drawing::DrawingAreaErrorKind, prelude::*};

/// The size of a panel, pixels.
const WIDTH: u32 = 640;
const HEIGHT: u32 = 360;
/// How many panels stand side by side.
const COLUMNS: usize = 2;

/// A group of bars that lie together, one for each [`Series`].
pub(crate) struct Bars {
    pub(crate) name: String,
    pub(crate) values: Vec<f64>,
}

/// What the bars of one colour stand for.
pub(crate) struct Series {
    pub(crate) label: &'static str,
    pub(crate) color: (u8, u8, u8),
}

/// A part of a picture, with a title of its own.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) bars: Vec<Bars>,
}

/// A picture.
pub(crate) struct Picture {
    pub(crate) unit: &'static str,
    /// Where no bar is.
    pub(crate) legend: SeriesLabelPosition,
    pub(crate) series: &'static [Series],
    pub(crate) panels: Vec<Panel>,
}

/// Draws the panels into an SVG file, with one scale for all.
pub(crate) fn draw(path: &Path, picture: &Picture) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| anyhow!("draw {}: {error}", path.display());
    let panels = &picture.panels;
    let columns = COLUMNS.min(panels.len());
    let rows = panels.len().div_ceil(COLUMNS);
    let size = (WIDTH * columns as u32, HEIGHT * rows as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let bars = panels.iter().flat_map(|panel| &panel.bars);
    let values = bars.flat_map(|bars| bars.values.iter().copied());
    let most = values.fold(1.0, f64::max);
    let areas = root.split_evenly((rows, columns));
    for (area, panel) in areas.iter().zip(panels) {
        draw_panel(area, panel, picture, most).map_err(|error| failed(&error))?;
    }
    root.present().map_err(|error| failed(&error))
}

/// Draws a panel whose axis goes to `most`.
fn draw_panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    panel: &Panel,
    picture: &Picture,
    most: f64,
) -> Result<(), DrawingAreaErrorKind<io::Error>> {
    let count = panel.bars.len();
    let name = |place: &f64| {
        let bars = panel.bars.get(place.round() as usize);
        bars.map_or_else(String::new, |bars| bars.name.clone())
    };
    let longest = panel.bars.iter().map(|bars| bars.name.len()).max();
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(20 + 7 * longest.unwrap_or(0) as u32)
        .build_cartesian_2d(0.0..most * 1.02, (count as f64 - 0.5)..-0.5)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .x_max_light_lines(0)
        .y_labels(count)
        .y_label_formatter(&name)
        .x_label_formatter(&|value| format!("{value:.0}"))
        .x_desc(picture.unit)
        .draw()?;
    let thickness = 0.8 / picture.series.len() as f64;
    for (number, series) in picture.series.iter().enumerate() {
        let (red, green, blue) = series.color;
        let color = RGBColor(red, green, blue);
        let bars = panel.bars.iter().enumerate().map(|(place, bars)| {
            let top = place as f64 - 0.4 + number as f64 * thickness;
            let value = bars.values.get(number).copied().unwrap_or(0.0);
            Rectangle::new([(0.0, top), (value, top + thickness)], color.filled())
        });
        chart
            .draw_series(bars)?
            .label(series.label)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], color.filled()));
    }
    chart
        .configure_series_labels()
        .position(picture.legend.clone())
        .border_style(BLACK)
        .background_style(WHITE)
        .draw()?;
    Ok(())
}
