//! The picture of a checkpoint in time: an intruder disturbs it in two windows, unless a guard
//! refuses that.

use svg::{
    Document,
    node::element::{Group, Path, Style, Title},
};

use crate::shapes::{rectangle, text};

const WIDTH: i32 = 900;
const HEIGHT: i32 = 420;

/// The steps of CRIU, with the left and the right edge of each.
const STEPS: [(i32, i32, &str); 5] = [
    (56, 148, "freeze"),
    (302, 368, "seize"),
    (372, 436, "thaw"),
    (440, 744, "dump: CRIU works in the tasks"),
    (748, 872, "kill or let run"),
];
/// The states of the cgroup's freezer, on v1 and v2: edges, class and name.
const STATES: [(i32, i32, &str, &str); 3] = [
    (28, 102, "running", "thawed"),
    (102, 404, "frozen", "FROZEN"),
    (404, 872, "running", "thawed by CRIU"),
];
/// The times in which an intruder can disturb the checkpoint.
const WINDOWS: [(i32, i32, &str, &str); 2] = [
    (150, 300, "Window A", "not yet seized"),
    (440, 744, "Window B", "CRIU has thawed the cgroup again"),
];
/// The accesses of the intruder: middle, name, and consequence without a guard.
const ATTEMPTS: [(i32, &str, [&str; 2]); 3] = [
    (225, "thaw, kill", ["tasks run or die", "unseen"]),
    (508, "freeze", ["CRIU hangs", "for ever"]),
    (
        655,
        "kill, move, ptrace",
        ["success reported", "for a corrupt image"],
    ),
];

/// The page around the picture.
#[derive(Clone, Copy)]
pub(crate) enum Theme {
    Light,
    Dark,
}

impl Theme {
    /// Returns the style of all classes, as CSS.
    fn style(self) -> String {
        let colors = match self {
            Self::Light => [
                ("PAPER", "#ffffff"),
                ("INK", "#1f2328"),
                ("MUTED", "#59636e"),
                ("LINE", "#d1d9e0"),
                ("LANE", "#f6f8fa"),
                ("STEP", "#dbe4ee"),
                ("COLD", "#0969da"),
                ("WARM", "#8a5300"),
                ("TINT", "#d4a72c"),
                ("BAD", "#cf222e"),
                ("GOOD", "#1a7f37"),
                ("SAFE", "#d2f4da"),
            ],
            Self::Dark => [
                ("PAPER", "#0d1117"),
                ("INK", "#e6edf3"),
                ("MUTED", "#9ca5af"),
                ("LINE", "#3d444d"),
                ("LANE", "#161c24"),
                ("STEP", "#2b3440"),
                ("COLD", "#1f6feb"),
                ("WARM", "#e3b341"),
                ("TINT", "#bb8009"),
                ("BAD", "#ff7b72"),
                ("GOOD", "#56d364"),
                ("SAFE", "#12351f"),
            ],
        };
        let names = STYLE.to_owned();
        colors
            .into_iter()
            .fold(names, |style, (name, color)| style.replace(name, color))
    }
}

const STYLE: &str = "
text{font:14px system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;fill:INK;\
text-anchor:middle}
.left{text-anchor:start}.title{font-weight:bold;text-anchor:start}
.muted{fill:MUTED;font-size:13px}.strong{font-weight:bold}
.bad{fill:BAD;font-weight:bold}.good{fill:GOOD;font-weight:bold}.state{fill:#fff;font-size:12px}
.big{fill:GOOD;font-weight:bold;font-size:16px;letter-spacing:2px}.warm{fill:WARM;font-weight:bold}
.paper{fill:PAPER;stroke:LINE}.lane{fill:LANE}.step{fill:STEP}.safe{fill:SAFE;stroke:GOOD;stroke-width:2}
.window{fill:TINT;opacity:.15}.frozen{fill:COLD}.running{fill:#6e7781}
.axis{stroke:MUTED;stroke-width:2;stroke-dasharray:2 5;fill:none}
.arrow{stroke:WARM;stroke-width:2.5;fill:none;stroke-linejoin:round;stroke-linecap:round}
.cross{stroke:BAD;stroke-width:3;fill:none;stroke-linecap:round}
.check{stroke:GOOD;stroke-width:3;fill:none;stroke-linecap:round;stroke-linejoin:round}
";

/// Draws the picture as an SVG document. It has a background of its own, since a reader can choose
/// the theme of a book independently of the theme of the browser.
pub(crate) fn draw(theme: Theme) -> String {
    let title = "When others can disturb a checkpoint, without and with freezer-guard";
    let document = Document::new()
        .set("viewBox", (0, 0, WIDTH, HEIGHT))
        .set("width", WIDTH)
        .set("height", HEIGHT)
        .set("role", "img")
        .add(Title::new(title))
        .add(Style::new(theme.style()))
        .add(
            rectangle(1, 1, WIDTH - 2, HEIGHT - 2)
                .set("rx", 12)
                .set("class", "paper"),
        )
        .add(
            rectangle(28, 126, 844, 110)
                .set("rx", 8)
                .set("class", "lane"),
        )
        .add(
            rectangle(28, 246, 844, 124)
                .set("rx", 8)
                .set("class", "lane"),
        )
        .add(windows())
        .add(checkpoint())
        .add(without_guard(126))
        .add(with_guard(246));
    let detected = "The guard detects an access that it cannot refuse: exit code 73, and the image does not count as good.";
    format!("{}\n", document.add(text("", WIDTH / 2, 398, detected)))
}

fn windows() -> Group {
    WINDOWS
        .into_iter()
        .fold(Group::new(), |group, (from, to, name, state)| {
            let middle = (from + to) / 2;
            group
                .add(
                    rectangle(from, 12, to - from, 358)
                        .set("class", "window")
                        .set("rx", 6),
                )
                .add(text("warm", middle, 30, name))
                .add(text("muted", middle, 47, state))
        })
}

/// The steps of CRIU, and the states of the freezer below them.
fn checkpoint() -> Group {
    let axis = path("axis", "M28 73H872");
    let mut group = Group::new()
        .add(axis)
        .add(text("muted left", 28, 47, "CRIU"))
        .add(text("muted", 848, 47, "time →"));
    for (from, to, name) in STEPS {
        let step = rectangle(from, 56, to - from, 34)
            .set("rx", 6)
            .set("class", "step");
        group = group
            .add(step)
            .add(text("strong", (from + to) / 2, 78, name));
    }
    for (from, to, class, name) in STATES {
        let state = rectangle(from, 96, to - from - 1, 18).set("class", class);
        group = group
            .add(state)
            .add(text("state", (from + to) / 2, 109, name));
    }
    group
}

/// The lane whose upper edge is at `y`.
fn without_guard(y: i32) -> Group {
    let mut group = Group::new()
        .add(text("muted left", 40, y + 22, "an intruder"))
        .add(text("title", 40, y + 80, "Without"))
        .add(text("title", 40, y + 98, "a guard"));
    for (x, what, harm) in ATTEMPTS {
        group = group
            .add(text("warm", x, y + 22, what))
            .add(arrow(x, y + 30, y + 60))
            .add(text("bad", x, y + 80, harm[0]))
            .add(text("bad", x, y + 98, harm[1]));
    }
    group
        .add(cross(810, y + 45))
        .add(text("bad", 810, y + 80, "no image, or"))
        .add(text("bad", 810, y + 98, "a corrupt one"))
}

fn with_guard(y: i32) -> Group {
    let band = rectangle(32, y + 60, 838, 56)
        .set("rx", 8)
        .set("class", "safe");
    let mut group = Group::new()
        .add(text("title", 40, y + 24, "With"))
        .add(text("title", 40, y + 44, "freezer-guard"))
        .add(band);
    for (x, what, _) in ATTEMPTS {
        group = group
            .add(text("warm", x, y + 22, what))
            .add(arrow(x, y + 30, y + 52))
            .add(text("good", x + 40, y + 48, "EBUSY"));
    }
    group
        .add(text("big", 393, y + 84, "CHECKPOINTING"))
        .add(text(
            "",
            393,
            y + 104,
            "each attempt is refused, counted and reported",
        ))
        .add(path("check", "M799 0l8 8 14-16").set("transform", format!("translate(0 {})", y + 78)))
        .add(text("good", 810, y + 106, "good image"))
}

fn path(class: &str, data: &str) -> Path {
    Path::new().set("class", class).set("d", data)
}

/// An arrow that points down.
fn arrow(x: i32, from: i32, to: i32) -> Path {
    path("arrow", &format!("M{x} {from}V{to}m-6-7l6 7 6-7"))
}

fn cross(x: i32, y: i32) -> Path {
    path("cross", &format!("M{} {}l18 18m0-18l-18 18", x - 9, y - 9))
}
