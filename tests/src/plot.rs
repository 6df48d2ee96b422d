//! Series over time as an SVG: what a panel of a dashboard shows.

use plotters::prelude::*;

/// A line: its name, and points of time (seconds) and value.
pub type Line = (String, Vec<(f64, f64)>);

/// A picture of these lines, in time order each.
///
/// # Panics
/// Without a point.
pub fn svg(title: &str, unit: &str, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let (first, last) = points().fold((f64::MAX, f64::MIN), |(least, most), (at, _)| {
        (least.min(*at), most.max(*at))
    });
    let most = points().map(|(_, value)| *value).fold(0.0, f64::max);
    assert!(first <= last, "{title} has no point");
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, (720, 260)).into_drawing_area();
    draw(&area, title, unit, lines, (first, last.max(first + 1.0)), most).expect("drawing into memory");
    drop(area);
    text
}

fn draw(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    unit: &str,
    lines: &[Line],
    (first, last): (f64, f64),
    most: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    area.fill(&WHITE)?;
    let top = if most > 0.0 { most * 1.15 } else { 1.0 };
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(10)
        .margin_right(190)
        .x_label_area_size(24)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..last - first, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(7)
        .y_labels(5)
        .x_label_formatter(&|seconds| format!("{seconds:.0} s"))
        .y_label_formatter(&|value| format!("{} {unit}", short(*value)))
        .draw()?;
    for (number, (name, points)) in lines.iter().enumerate() {
        let color = Palette99::pick(number).to_rgba();
        let points = points.iter().map(|(at, value)| (at - first, *value));
        chart.draw_series(LineSeries::new(points, color.stroke_width(2)))?;
        let (x, y) = (540, 36 + 18 * i32::try_from(number).unwrap_or(0));
        area.draw(&Rectangle::new([(x, y + 4), (x + 12, y + 7)], color.filled()))?;
        area.draw(&Text::new(name.clone(), (x + 18, y), ("sans-serif", 12)))?;
    }
    area.present()?;
    Ok(())
}

/// 12.3k for 12,345.
fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.1}M", v / 1e6),
        v if v >= 1e4 => format!("{:.1}k", v / 1e3),
        v if v >= 10.0 || v == 0.0 => format!("{v:.0}"),
        v => format!("{v:.2}"),
    }
}
