//! Pictures of bars.

use std::io;

use anyhow::{Result, anyhow};
use plotters::{coord::Shift, drawing::DrawingAreaErrorKind, prelude::*};

/// The size of a panel, pixels.
const WIDTH: u32 = 640;
const HEIGHT: u32 = 360;
/// The height of a line of the legend, pixels.
const LEGEND: u32 = 30;
/// How many panels, and entries of the legend, stand side by side.
const COLUMNS: usize = 2;

type Drawn = Result<(), DrawingAreaErrorKind<io::Error>>;

/// A group of bars that lie together, one for each [`Series`].
pub(crate) struct Bars {
    pub(crate) name: String,
    pub(crate) values: Vec<f64>,
}

/// The meaning of the bars of one colour.
pub(crate) struct Series {
    pub(crate) label: &'static str,
    pub(crate) color: (u8, u8, u8),
}

impl Series {
    fn style(&self) -> ShapeStyle {
        let (red, green, blue) = self.color;
        RGBColor(red, green, blue).filled()
    }
}

/// A part of a picture, with a title of its own.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) bars: Vec<Bars>,
}

/// A picture.
pub(crate) struct Picture {
    pub(crate) unit: &'static str,
    pub(crate) series: &'static [Series],
    pub(crate) panels: Vec<Panel>,
}

/// Draws the panels as an SVG document, with one scale for all.
///
/// It has a white background, so that it is readable on a dark page.
pub(crate) fn draw(picture: &Picture) -> Result<String> {
    let mut svg = String::new();
    draw_into(&mut svg, picture).map_err(|error| anyhow!("draw a picture: {error}"))?;
    Ok(svg)
}

fn draw_into(svg: &mut String, picture: &Picture) -> Drawn {
    let panels = &picture.panels;
    let columns = COLUMNS.min(panels.len());
    let rows = panels.len().div_ceil(COLUMNS);
    let legend = LEGEND * picture.series.len().div_ceil(COLUMNS) as u32;
    let (width, height) = (WIDTH * columns as u32, legend + HEIGHT * rows as u32);
    let root = SVGBackend::with_string(svg, (width, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let (legend, panel_areas) = root.split_vertically(legend);
    for (number, series) in picture.series.iter().enumerate() {
        let x = (number % COLUMNS) as i32 * (width / 2) as i32 + 24;
        let y = (number / COLUMNS) as i32 * LEGEND as i32 + 12;
        legend.draw(&Rectangle::new([(x, y), (x + 16, y + 16)], series.style()))?;
        legend.draw(&Text::new(series.label, (x + 24, y), ("sans-serif", 17)))?;
    }
    let bars = panels.iter().flat_map(|panel| &panel.bars);
    let values = bars.flat_map(|bars| bars.values.iter().copied());
    let most = values.fold(1.0, f64::max);
    let areas = panel_areas.split_evenly((rows, columns));
    for (area, panel) in areas.iter().zip(panels) {
        draw_panel(area, panel, picture, most)?;
    }
    root.present()
}

/// Draws a panel whose axis goes to `most`.
fn draw_panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    panel: &Panel,
    picture: &Picture,
    most: f64,
) -> Drawn {
    let count = panel.bars.len();
    let name = |place: &f64| {
        let bars = panel.bars.get(place.round() as usize);
        bars.map_or_else(String::new, |bars| bars.name.clone())
    };
    let longest = panel.bars.iter().map(|bars| bars.name.len()).max();
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(50)
        .y_label_area_size(30 + 8 * longest.unwrap_or(0) as u32)
        .build_cartesian_2d(0.0..most * 1.02, (count as f64 - 0.5)..-0.5)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .x_max_light_lines(0)
        .y_labels(count)
        .y_label_formatter(&name)
        .x_label_formatter(&|value| format!("{value:.0}"))
        .label_style(("sans-serif", 16))
        .axis_desc_style(("sans-serif", 16))
        .x_desc(picture.unit)
        .draw()?;
    let thickness = 0.8 / picture.series.len() as f64;
    for (number, series) in picture.series.iter().enumerate() {
        let bars = panel.bars.iter().enumerate().map(|(place, bars)| {
            let top = place as f64 - 0.4 + number as f64 * thickness;
            let value = bars.values.get(number).copied().unwrap_or(0.0);
            Rectangle::new([(0.0, top), (value, top + thickness)], series.style())
        });
        chart.draw_series(bars)?;
    }
    Ok(())
}
