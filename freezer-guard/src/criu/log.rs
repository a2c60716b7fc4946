//! What CRIU's log tells: how far it is, and why it has failed.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    dir,
    file::{self, LINE, LOG},
};

/// How much of a log is read at a time while it grows, bytes: the supervision of CRIU must not wait.
const PART: u64 = 8 << 20;

/// CRIU's log of a dump, as it grows, and the images beside it.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    reader: Option<BufReader<File>>,
    line: Vec<u8>,
    progress: Progress,
    old: Option<Stamp>,
}

/// Which file it is, and when it was written last: inode, seconds, nanoseconds.
type Stamp = (u64, i64, i64);

/// How far a dump is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// What CRIU does.
    pub stage: Stage,
    /// How many processes it has begun to dump.
    pub processes: usize,
    /// How many pages of memory it has written.
    pub pages: u64,
}

/// A part of a dump.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Stage {
    /// It freezes and seizes the tasks, and looks at what they share.
    #[default]
    Seizing,
    /// It dumps one process after the other.
    Dumping,
    /// It writes what is common to all, and lets the tasks go.
    Finishing,
}

impl Stage {
    /// `dumping`
    pub fn name(self) -> &'static str {
        match self {
            Self::Seizing => "seizing",
            Self::Dumping => "dumping",
            Self::Finishing => "finishing",
        }
    }
}

impl Progress {
    /// The memory that was written, bytes.
    pub fn bytes(&self) -> u64 {
        self.pages * procfs::page_size()
    }

    /// The lines are those of `dump_one_task`, `pre_dump_one_task` and
    /// `cr_dump_tasks` in CRIU's `cr-dump.c`, 3.17 to 4.2.
    fn read(&mut self, line: &str) {
        if line.contains("umping task (pid: ") {
            self.processes += 1;
            self.stage = Stage::Dumping;
        } else if line.contains("Writing image inventory") {
            self.stage = Stage::Finishing;
        }
    }
}

impl Log {
    /// The log with this name in a directory of images; it need not be there yet.
    pub fn new(dir: &Path, name: &str) -> Self {
        Self {
            path: dir.join(name),
            reader: None,
            line: Vec::new(),
            progress: Progress::default(),
            old: None,
        }
    }

    /// The same, but what it says by now is another's.
    pub fn anew(self) -> Self {
        Self {
            old: self.stamp(),
            ..self
        }
    }

    fn stamp(&self) -> Option<Stamp> {
        let metadata = self.path.metadata().ok()?;
        Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
    }

    /// When it was created, if its file system knows that: CRIU creates it when it sets its clock
    /// (`log_init` of `log.c`).
    pub fn begun(&self) -> Option<SystemTime> {
        self.path.metadata().ok()?.created().ok()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what has been added since.
    pub fn progress(&mut self) -> Progress {
        if self.reader.is_none() {
            self.reader = file::open(&self.path).ok().map(BufReader::new);
        }
        if let Some(reader) = &mut self.reader {
            let mut part = reader.take(PART);
            let mut rest = Vec::new();
            // What cannot be read now may be later; what is half a line is kept for then.
            while part
                .by_ref()
                .take(LINE)
                .read_until(b'\n', &mut rest)
                .is_ok_and(|count| count > 0)
            {
                // Of a long line the beginning will do.
                let room = (LINE as usize).saturating_sub(self.line.len());
                self.line.extend(rest.iter().take(room));
                if rest.ends_with(b"\n") {
                    self.progress.read(&String::from_utf8_lossy(&self.line));
                    self.line.clear();
                }
                rest.clear();
            }
        }
        let dir = self.path.parent().unwrap_or(Path::new("."));
        self.progress.pages = dir::bytes(dir, "pages-") / procfs::page_size();
        self.progress
    }

    /// The lines that tell why it has failed: the errors, or else the last ones.
    pub fn failure(&self) -> Vec<String> {
        const NAMED: usize = 8;
        let (mut errors, mut last) = (Vec::new(), VecDeque::new());
        if self.old.is_some() && self.old == self.stamp() {
            return errors;
        }
        let Ok(file) = file::open(&self.path) else {
            return errors;
        };
        let (mut log, mut line) = (BufReader::new(file.take(LOG)), Vec::new());
        while file::read_line(&mut log, &mut line).is_ok_and(|is_one| is_one) {
            let line = String::from_utf8_lossy(&line).into_owned();
            // The first one is what the others come from.
            if line.contains("Error (") && errors.len() < NAMED {
                errors.push(line.clone());
            }
            last.push_back(line);
            if last.len() > NAMED {
                last.pop_front();
            }
        }
        match errors.is_empty() {
            false => errors,
            true => last.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Seek as _, SeekFrom, Write as _},
    };

    use super::{LINE, Log, PART, Stage};

    #[test]
    fn tells_how_far_it_is_from_lines_that_come_in_pieces() {
        let temp = tempfile::tempdir().expect("a folder");
        let mut log = Log::new(temp.path(), "dump.log");
        assert_eq!(log.progress().stage, Stage::Seizing);
        let mut file = fs::File::create(log.path()).expect("a log");
        file.write_all(b"(00.01) Seized task 7\n(00.02) Dumping ta")
            .expect("a part");
        assert_eq!(log.progress().processes, 0);
        file.write_all(b"sk (pid: 7 comm: sh)\n").expect("the rest");
        fs::write(temp.path().join("pages-1.img"), [0; 3 * 4096]).expect("pages");
        let progress = log.progress();
        assert_eq!(progress.stage, Stage::Dumping);
        assert_eq!((progress.processes, progress.pages), (1, 3));
        assert_eq!(log.progress().processes, 1);
        assert_eq!(log.failure().len(), 2);
        let another = Log::new(temp.path(), "dump.log").anew();
        assert!(another.failure().is_empty());
        // The clock of files is coarse.
        std::thread::sleep(std::time::Duration::from_millis(20));
        file.write_all(b"(00.03) Error (criu/mem.c:1): no\n(00.04) bye\n")
            .expect("an error");
        assert_eq!(another.failure().len(), 1);
        assert_eq!(log.failure(), ["(00.03) Error (criu/mem.c:1): no"]);
    }

    #[test]
    fn a_log_without_lines_takes_no_memory() {
        let temp = tempfile::tempdir().expect("a folder");
        let mut log = Log::new(temp.path(), "dump.log");
        let mut file = fs::File::create(log.path()).expect("a log");
        file.set_len(3 * PART).expect("a sparse file");
        for _ in 0..2 {
            assert_eq!(log.progress().processes, 0);
            assert!(log.line.capacity() <= 2 * LINE as usize);
        }
        let length: usize = log.failure().iter().map(String::len).sum();
        assert!(length <= LINE as usize, "{length}");
        // The next line is read all the same, once it is reached.
        file.seek(SeekFrom::End(0)).expect("its end");
        file.write_all(b"\n(00.02) Dumping task (pid: 7 comm: sh)\n")
            .expect("more");
        let processes = (0..3).map(|_| log.progress().processes).max();
        assert_eq!(processes, Some(1));
        fs::remove_file(log.path()).expect("it goes");
        std::os::unix::fs::symlink("/dev/zero", log.path()).expect("a link");
        assert!(log.failure().is_empty());
        let mut log = Log::new(temp.path(), "dump.log");
        assert_eq!(log.progress().processes, 0);
    }
}
