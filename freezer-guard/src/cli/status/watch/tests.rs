use std::{
    io,
    time::{Duration, SystemTime},
};

use freezer_guard::guard::Status;
use serde_json::json;
use tokio::time::Instant;

use super::{ASKED, ENDED, Found, View, is_read_until};

/// Begun so many seconds after midnight.
fn guard(id: u8) -> Status {
    let guard = json!({
        "id": id,
        "state": "CHECKPOINTING",
        "automatic": false,
        "cgroups": [format!("/sys/fs/cgroup/{id}")],
        "holder_pids": [1],
        "begun": format!("2026-11-30T00:00:{id:02}.000Z"),
        "checkpointing": null,
        "held_seconds": 1.0,
        "level": "enforce",
        "levels": {},
        "allowed": [],
        "denials": {},
        "violations": {},
        "repaired": {},
        "missed": 0,
        "froze": true,
        "intruders": [],
        "violators": [],
    });
    serde_json::from_value(guard).expect("a guard")
}

fn guards(ids: std::ops::Range<u8>) -> Vec<Status> {
    ids.map(guard).collect()
}

fn found(guards: Vec<Status>, history: Option<Vec<Status>>) -> Found {
    Found {
        guards,
        history: Ok(history),
        written: Some(SystemTime::UNIX_EPOCH),
    }
}

#[test]
fn guards_that_end_together_have_all_ended() {
    let many = u8::try_from(ENDED).expect("few") + 3;
    let mut view = View::default();
    let first = found(guards(0..many), Some(Vec::new()));
    view.take(first).expect("no error");
    let second = found(Vec::new(), Some(guards(0..many)));
    view.take(second).expect("no error");
    let ended = view.ended();
    assert_eq!(ended.len(), ENDED);
    assert!(ended.iter().all(|(_, is_last_seen)| !is_last_seen));
    assert!(!view.known().is_awaited);
}

#[test]
fn a_guard_that_the_history_lacks_is_shown_as_it_was() {
    let mut view = View::default();
    let first = found(guards(0..1), Some(Vec::new()));
    view.take(first).expect("no error");
    for _ in 0..ASKED {
        view.take(found(Vec::new(), Some(Vec::new())))
            .expect("no error");
    }
    assert!(matches!(view.ended()[..], [(_, true)]));
    assert!(!view.known().is_awaited, "it asks for ever");
}

#[test]
fn the_history_is_asked_for_when_it_may_have_changed() {
    let mut view = View::default();
    let written = Some(SystemTime::UNIX_EPOCH);
    let first = found(guards(0..1), Some(Vec::new()));
    view.take(first).expect("no error");
    let asks = |guards: &[Status], written| view.known().asks_for_history(guards, written);
    assert!(!asks(&guards(0..2), written), "nothing has changed");
    assert!(asks(&[], written), "a guard has gone");
    let later = written.map(|time| time + Duration::from_secs(1));
    assert!(asks(&guards(0..1), later), "it was written");
}

/// The service's directory is root's: a member of the group cannot see when the history was written.
#[test]
fn without_a_time_the_history_is_always_asked_for() {
    let mut view = View::default();
    for _ in 0..2 {
        assert!(view.known().asks_for_history(&[], None));
        view.take(Found {
            written: None,
            ..found(Vec::new(), Some(Vec::new()))
        })
        .expect("no error");
    }
}

#[test]
fn a_closed_pipe_is_noticed_at_once() {
    let (reader, writer) = io::pipe().expect("a pipe");
    let start = Instant::now();
    let soon = start + Duration::from_millis(50);
    assert_eq!(is_read_until(&writer, soon), Ok(true));
    assert!(start.elapsed() >= Duration::from_millis(40));
    drop(reader);
    let never = start + Duration::from_secs(3600);
    assert_eq!(is_read_until(&writer, never), Ok(false));
}
