//! The stages of a dump, as CRIU's log has them when it is over.

use std::{
    io::{self, BufRead, BufReader, Read as _},
    path::Path,
    time::Duration,
};

use super::file::{self, LOG};
use crate::words::YEAR;

/// What CRIU did, and when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stages {
    /// In the order of the log.
    pub steps: Vec<Step>,
    /// The time of the last line.
    pub last: Duration,
    /// Whether the log has more than is read or kept of one.
    pub is_cut: bool,
}

/// Something that CRIU began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// When, by CRIU's clock, which begins with its log.
    pub at: Duration,
    /// What.
    pub action: Action,
}

/// An action of CRIU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It freezes the cgroup and seizes its tasks.
    Seize,
    /// It dumps one process.
    Dump {
        /// The process.
        pid: u32,
        /// The pages of private memory that it writes.
        pages: u64,
    },
    /// It writes what the processes share.
    Share,
    /// It writes the memory of a pre-dump, after the tasks have been let go.
    WriteMemory,
    /// It runs the action scripts, of which freezer-guard is one.
    Ask,
    /// It lets the tasks run on.
    Resume,
    /// It ends the tasks.
    End,
    /// It ends well.
    Succeed,
    /// It ends badly.
    Fail,
    /// It reports an error.
    Error(String),
}

/// How many errors are kept: the others come from the first.
const ERRORS: usize = 3;
/// How many processes are kept.
const DUMPS: usize = 1 << 16;
/// How many of the other steps are kept: a dump has fewer than ten.
const OTHERS: usize = 64;
/// `TASK_ALIVE` of `criu/include/pstree.h`.
const ALIVE: &str = "1";

impl Stages {
    /// Reads CRIU's log.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(path: &Path) -> io::Result<Self> {
        let file = file::open(path)?;
        let is_longer = file.metadata()?.len() > LOG;
        let mut parser = Parser::default();
        parser.read(BufReader::new(file.take(LOG)))?;
        let mut stages = parser.stages;
        stages.is_cut |= is_longer;
        Ok(stages)
    }
}

/// The stages so far, and how many there are of each kind.
#[derive(Default)]
struct Parser {
    stages: Stages,
    has_seized: bool,
    has_shared: bool,
    dumps: usize,
    others: usize,
    errors: usize,
}

impl Parser {
    fn read(&mut self, mut log: impl BufRead) -> io::Result<()> {
        let mut line = Vec::new();
        while file::read_line(&mut log, &mut line)? {
            self.add(&String::from_utf8_lossy(&line));
        }
        Ok(())
    }

    /// Reads one line. A line without a time continues the one before: only the name of a task puts
    /// a line end into a line, and it is too short for a time and one of these words.
    fn add(&mut self, line: &str) {
        let Some((at, text)) = timed(line) else {
            return;
        };
        self.stages.last = at;
        if let Some(pages) = written(text) {
            if let Some(Action::Dump { pages: sum, .. }) = self.dumped() {
                *sum = sum.saturating_add(pages);
            }
        } else if let Some(action) = Action::of(text)
            && self.is_new(&action)
        {
            self.stages.steps.push(Step { at, action });
        }
    }

    /// Counts a step. Returns whether it is kept.
    fn is_new(&mut self, action: &Action) -> bool {
        let (count, most) = match action {
            Action::Seize if std::mem::replace(&mut self.has_seized, true) => return false,
            Action::Share if std::mem::replace(&mut self.has_shared, true) => return false,
            Action::Error(_) if self.errors >= ERRORS => return false,
            Action::Error(_) => (&mut self.errors, ERRORS),
            Action::Dump { .. } => (&mut self.dumps, DUMPS),
            _ => (&mut self.others, OTHERS),
        };
        let is_new = *count < most;
        *count += usize::from(is_new);
        self.stages.is_cut |= !is_new;
        is_new
    }

    /// The process that is being dumped: among the last steps, since few are of another kind.
    fn dumped(&mut self) -> Option<&mut Action> {
        let mut actions = self.stages.steps.iter_mut().rev();
        let action = actions.find(|step| matches!(step.action, Action::Dump { .. }));
        action.map(|step| &mut step.action)
    }
}

impl Action {
    /// The words are those of CRIU 3.17 to 4.2: of `freeze_processes` and `collect_pstree`
    /// (`seize.c`), `dump_one_task`, `pre_dump_one_task`, `cr_pre_dump_finish` and
    /// `cr_dump_finish` (`cr-dump.c`), `dump_pstree` (`pstree.c`), `run_scripts`
    /// (`action-scripts.c`) and `pstree_switch_state` (`seize.c`).
    fn of(text: &str) -> Option<Self> {
        const SEIZE: [&str; 4] = [
            "freezing cgroup ",
            "freezing processes: ",
            "Seized task ",
            "Collected ",
        ];
        for words in ["Dumping task (pid: ", "Pre-dumping task (pid: "] {
            if let Some(rest) = text.strip_prefix(words) {
                let digits = rest.split(|letter: char| !letter.is_ascii_digit()).next();
                let pid = digits?.parse().ok()?;
                return Some(Self::Dump { pid, pages: 0 });
            }
        }
        if let Some(state) = text.strip_prefix("Unfreezing tasks into ") {
            return Some(match state == ALIVE {
                true => Self::Resume,
                false => Self::End,
            });
        }
        Some(match text {
            _ if SEIZE.iter().any(|words| text.starts_with(words)) => Self::Seize,
            _ if text.starts_with("Error (") && text.ends_with("umping FAILED.") => Self::Fail,
            _ if text.starts_with("Error (") => Self::Error(text.to_owned()),
            _ if text.starts_with("Dumping pstree (pid: ") => Self::Share,
            "Pre-dumping tasks' memory" => Self::WriteMemory,
            "Running post-dump scripts" => Self::Ask,
            "Dumping finished successfully" | "Pre-dumping finished successfully" => Self::Succeed,
            _ => return None,
        })
    }
}

/// A line's time and its text: `(00.012345) text`. From 100 s on, the last digit gives way
/// (`print_ts` of `log.c`). No dump lasts a year.
fn timed(line: &str) -> Option<(Duration, &str)> {
    let (time, text) = line.strip_prefix('(')?.split_once(") ")?;
    let (seconds, fraction) = time.split_once('.')?;
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if seconds.len() + fraction.len() < 8 || !is_number(seconds) || !is_number(fraction) {
        return None;
    }
    let micros: u32 = format!("{fraction:0<6}").parse().ok()?;
    let whole = Duration::from_secs(seconds.parse().ok()?);
    let at = whole.checked_add(Duration::from_micros(micros.into()))?;
    (at <= YEAR).then_some((at, text))
}

/// The pages that `generate_iovs` of `mem.c` has found to be written:
/// `Pagemap generated: 12 pages (0 lazy) 3 holes`. Lazy ones stay where they are.
fn written(text: &str) -> Option<u64> {
    let mut words = text.strip_prefix("Pagemap generated: ")?.split(' ');
    let pages: u64 = words.next()?.parse().ok()?;
    let lazy = words.nth(1)?.strip_prefix('(')?.parse().ok()?;
    Some(pages.saturating_sub(lazy))
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::{Action, Parser, Stages, timed};
    use crate::criu::DumpStats;
    use crate::criu::file::LINE;

    /// A directory with what a real CRIU has written.
    fn sample(name: &str) -> std::path::PathBuf {
        let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/criu/samples");
        samples.join(name)
    }

    fn read(name: &str) -> Stages {
        Stages::read(&sample(name).join("dump.log")).expect("a log")
    }

    fn actions(stages: &Stages) -> Vec<Action> {
        let steps = stages.steps.iter();
        steps.map(|step| step.action.clone()).collect()
    }

    fn dump(pid: u32, pages: u64) -> Action {
        Action::Dump { pid, pages }
    }

    #[test]
    fn a_good_dump_of_4_2() {
        let stages = read("good-4.2");
        assert_eq!(
            actions(&stages),
            [
                Action::Seize,
                dump(105, 77),
                dump(106, 80),
                dump(107, 79),
                Action::Share,
                Action::Ask,
                Action::End,
                Action::Succeed,
            ]
        );
        assert_eq!(stages.steps[0].at, Duration::from_micros(873_724));
        assert_eq!(stages.last, Duration::from_micros(1_143_452));
    }

    #[test]
    fn a_violated_dump_of_4_1() {
        let stages = read("violated-4.1");
        let found = actions(&stages);
        assert_eq!(found[..2], [Action::Seize, dump(139, 592)]);
        assert_eq!(found.last(), Some(&Action::Fail));
        let errors = found.iter().filter_map(|action| match action {
            Action::Error(text) => Some(text.as_str()),
            _ => None,
        });
        let errors: Vec<_> = errors.collect();
        assert_eq!(errors[0], "Error (criu/util.c:656): exited, status=73");
        assert_eq!(errors.len(), 3);
    }

    #[test]
    fn a_pre_dump_of_3_17() {
        assert_eq!(
            actions(&read("pre-dump-3.17")),
            [
                Action::Seize,
                dump(146, 593),
                dump(148, 593),
                dump(149, 593),
                Action::Resume,
                Action::WriteMemory,
                Action::Succeed,
            ]
        );
    }

    /// CRIU counts the same pages.
    #[test]
    fn the_pages_are_those_of_the_statistics() {
        for name in ["good-4.2", "pre-dump-3.17"] {
            let stats = DumpStats::read(&sample(name)).expect("a file");
            let stats = stats.expect("it is there");
            let pages = actions(&read(name)).into_iter().map(|action| match action {
                Action::Dump { pages, .. } => pages,
                _ => 0,
            });
            assert_eq!(stats.pages_written, pages.sum::<u64>(), "{name}");
            assert!(stats.frozen_time > stats.freezing_time, "{stats:?}");
        }
        let violated = DumpStats::read(&sample("violated-4.1"));
        assert_eq!(violated.expect("no file is no error"), None);
    }

    #[test]
    fn a_time_loses_its_last_digit_after_100_s() {
        let parsed = timed("(100.12345) x").expect("a line");
        assert_eq!(parsed, (Duration::from_micros(100_123_450), "x"));
    }

    #[test]
    fn no_name_of_a_task_forges_a_line() {
        let mut parser = Parser::default();
        // 15 bytes at most, with a line end.
        for line in [
            "(0.1) Error (x)",
            "(1) Seized ta",
            "(00.000001) y",
            "((00.0) Error",
        ] {
            parser.add(line);
        }
        assert_eq!(parser.stages.steps, []);
    }

    #[test]
    fn no_dump_lasts_a_year() {
        assert_eq!(timed("(18446744073709551615.000000) x"), None);
        assert_eq!(
            timed("(300000000000.000) Dumping finished successfully"),
            None
        );
    }

    #[test]
    fn a_long_log_is_cut() {
        let line = "(00.000001) Running post-dump scripts\n";
        let task = "(00.000002) Dumping task (pid: 7 comm: sh)\n";
        let pages = "(00.000003) Pagemap generated: 18446744073709551615 pages (0 lazy) 0 holes\n";
        let log = line.repeat(100) + &task.repeat(70_000) + &pages.repeat(2);
        let mut parser = Parser::default();
        parser.read(log.as_bytes()).expect("a log");
        let stages = parser.stages;
        assert!(stages.is_cut);
        assert_eq!(stages.steps.len(), super::OTHERS + super::DUMPS);
        let last = stages.steps.last().map(|step| &step.action);
        assert_eq!(last, Some(&dump(7, u64::MAX)));
    }

    #[test]
    fn a_long_line_is_cut_and_the_next_is_read() {
        let long = format!("(00.000001) Error (x): {}\n", "x".repeat(1 << 20));
        let log = long + "(00.000002) Dumping finished successfully\n";
        let mut parser = Parser::default();
        parser.read(log.as_bytes()).expect("a log");
        let found = actions(&parser.stages);
        assert_eq!(found[1..], [Action::Succeed]);
        match &found[0] {
            Action::Error(text) => assert!(text.len() as u64 <= LINE),
            other => panic!("{other:?}"),
        }
    }
}
