//! What operations may cost.

use super::{Dump, Found, Life, Memory, Row};

/// How much more than what empty programs add guards may add. docs/performance.md tells
/// why older kernels have other limits, and why a `stat` has any.
fn budget(kernel: &str, hierarchy: &str, operation: &str) -> Option<f64> {
    Some(match (version(kernel), hierarchy, operation) {
        (_, _, "read /dev/zero" | "read tmpfs") => 1.07,
        (_, _, "write /dev/null" | "write tmpfs") if is_arm64(kernel) => 1.25,
        ("6.1", _, "write /dev/null" | "write tmpfs") => 1.26,
        (_, _, "write /dev/null" | "write tmpfs") => 1.20,
        (_, _, "fork+exit") => 1.5,
        (_, "v2", "stat deep path") => 1.07,
        _ => return None,
    })
}

/// The kernel's version without its machine.
fn version(kernel: &str) -> &str {
    kernel.split('-').next().unwrap_or(kernel)
}

/// There a BPF program has more instructions, and figures vary more.
fn is_arm64(kernel: &str) -> bool {
    kernel.ends_with("-arm64")
}

/// How exact an operation's figure is, instructions. A process gets other pages each time;
/// a path's names share their places in a table of the kernel's with others; and so do
/// holders' threads and targets in ours. (A write to a cgroup's file took two fewer on 6.12
/// and two more on 5.10 once anything of ours had been attached, also after it was gone. The
/// reason is not known.)
pub(super) fn exactness(kernel: &str, operation: &str, figure: f64) -> f64 {
    match operation {
        "fork+exit" | "exec" if is_arm64(kernel) => figure / 100.0,
        "fork+exit" | "exec" => figure / 200.0,
        "open+close" => figure / 25.0,
        "stat deep path" => figure / 250.0,
        "signal" | "write unrelated freezer" => 40.0,
        "write unrelated cgroup file" | "write guarded freezer" => 2.5,
        _ if is_arm64(kernel) => 0.2,
        _ => 0.05,
    }
}

/// The largest number of instructions that the first guard after a boot may take more than one
/// that finds the service, when it guards few tasks: it loads and attaches the programs.
fn cold_budget(kernel: &str) -> f64 {
    match version(kernel) {
        "6.1" => 420e6,
        "6.12" | "6.18" => 500e6,
        // It does more to load a program.
        _ => 1100e6,
    }
}

/// The largest number of instructions for a guard that finds the service. (On 7.3 some begins take
/// 4 million more than others.)
const WARM_BUDGET: f64 = 16e6;

/// Of so many tasks these figures are.
const FEW_TASKS: usize = 10;

/// Returns the excess over a budget, if any. `all`: the lives on the same kernel.
pub(super) fn life_complaint(kernel: &str, life: &Life, all: &[Life]) -> Option<String> {
    if life.tasks > FEW_TASKS {
        return None;
    }
    let warm = all.iter().find(|other| {
        other.found == Found::Service
            && (&other.hierarchy, other.tasks) == (&life.hierarchy, life.tasks)
    })?;
    let (what, is, limit) = match life.found {
        Found::Nothing => (
            "a cold begin adds",
            life.begin - warm.begin,
            cold_budget(kernel),
        ),
        Found::Programs => return None,
        Found::Service => ("a begin takes", life.begin, WARM_BUDGET),
    };
    let millions = |number: f64| number / 1e6;
    (is > limit).then(|| {
        format!(
            "{what} {:.1} million instructions; the budget is {:.0}",
            millions(is),
            millions(limit)
        )
    })
}

/// The most that programs and maps may take of the kernel's memory without a guard, bytes.
const IDLE_MEMORY: u64 = 4 << 20;

/// Returns the excess over the budget, if any. (Before 6.4 the kernel tells the size of a full
/// map.)
pub(super) fn memory_complaint(kernel: &str, memory: &Memory) -> Option<String> {
    let is = memory.maps + memory.programs;
    (version(kernel) != "6.1" && memory.guards == 0 && is > IDLE_MEMORY)
        .then(|| format!("{is} bytes without a guard; the budget is {IDLE_MEMORY}"))
}

/// What is not as it has to be: with the service a dump of 100 MiB takes hardly longer.
pub(super) fn dump_complaint(kernel: &str, dump: &Dump) -> Option<String> {
    let limit = if is_arm64(kernel) { 1.08 } else { 1.06 };
    let ratio = dump.guarded / dump.bare;
    (dump.found == Found::Service && dump.mib >= 100 && ratio > limit)
        .then(|| format!("takes {ratio:.3} times as long under a guard; the budget is {limit}"))
}

/// What is not as it has to be.
pub(super) fn complaints(kernel: &str, row: &Row) -> Vec<String> {
    let (none, empty) = (row.at("none"), row.at("empty"));
    let exactness = exactness(kernel, &row.operation, none);
    let mut complaints = Vec::new();
    for condition in ["idle", "after"] {
        let more = row.at(condition) - none;
        if more.abs() > exactness {
            complaints.push(format!(
                "{condition}: {more:+.2} instructions, compared with none"
            ));
        }
    }
    if let Some(limit) = budget(kernel, &row.hierarchy, &row.operation) {
        for (condition, instructions) in row.guarded() {
            let is = (instructions - none - exactness) / (empty - none + exactness);
            if is > limit {
                complaints.push(format!(
                    "{condition}: adds {is:.3} times as much as empty programs; the budget is {limit}"
                ));
            }
        }
    }
    // Many cost what few cost.
    if row.operation != "write guarded freezer"
        && let Some((fewest, few)) = row.guarded().next()
    {
        for (condition, many) in row.guarded().skip(1) {
            let more = many - few;
            if more.abs() > exactness {
                complaints.push(format!(
                    "{condition}: {more:+.2} instructions, compared with {fewest}"
                ));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::{
        super::Figure, Dump, Found, Life, Memory, Row, complaints, dump_complaint, life_complaint,
        memory_complaint,
    };

    /// A read, as it takes on 6.12, and with so many instructions here.
    fn read(condition: &str, instructions: f64) -> Row {
        let figures = [
            ("none", 662.0),
            ("empty", 847.0),
            ("idle", 662.0),
            ("guards-1", 851.0),
            ("guards-100", 851.0),
            ("after", 662.0),
        ];
        let figures = figures.map(|(name, usual)| {
            let median = if name == condition {
                instructions
            } else {
                usual
            };
            Figure {
                condition: name.to_owned(),
                median,
                p10: median,
                p90: median,
            }
        });
        Row {
            hierarchy: "v2".to_owned(),
            operation: "read tmpfs".to_owned(),
            figures: figures.into(),
        }
    }

    #[test]
    fn complains_of_what_is_over_its_budget() {
        assert!(complaints("6.12", &read("none", 662.0)).is_empty());
        for (condition, instructions) in [
            ("idle", 663.0),
            ("after", 661.0),
            ("guards-1", 875.0),
            ("guards-100", 852.0),
        ] {
            let said = complaints("6.12", &read(condition, instructions));
            let is_named = said.iter().any(|said| said.contains(condition));
            assert!(is_named, "{condition}: {said:?}");
        }
    }

    #[test]
    fn complains_of_a_dump_that_takes_longer() {
        let dump = |mib, found, guarded| Dump {
            hierarchy: "v2".to_owned(),
            mib,
            found,
            bare: 240.0,
            guarded,
        };
        assert!(dump_complaint("6.12", &dump(100, Found::Service, 251.0)).is_none());
        assert!(dump_complaint("6.12", &dump(100, Found::Service, 255.0)).is_some());
        assert!(dump_complaint("6.12", &dump(100, Found::Nothing, 2500.0)).is_none());
        assert!(dump_complaint("6.12", &dump(1, Found::Service, 255.0)).is_none());
    }

    #[test]
    fn complains_of_a_begin_that_takes_longer() {
        let life = |tasks, found, begin| Life {
            hierarchy: "v2".to_owned(),
            tasks,
            found,
            begin,
            end: 3e6,
        };
        let warm = life(10, Found::Service, 10e6);
        let said = |kernel, life: &Life| {
            life_complaint(kernel, life, &[life.clone(), warm.clone()]).is_some()
        };
        assert!(!said("6.12", &life(10, Found::Nothing, 509e6)));
        assert!(said("6.12", &life(10, Found::Nothing, 511e6)));
        assert!(!said("6.1", &life(10, Found::Nothing, 429e6)));
        assert!(said("6.1", &life(10, Found::Nothing, 431e6)));
        assert!(!said("6.12", &life(10_000, Found::Nothing, 3000e6)));
        assert!(!said("6.12", &warm));
        let slow = life(10, Found::Service, 17e6);
        assert!(life_complaint("6.12", &slow, std::slice::from_ref(&slow)).is_some());
    }

    #[test]
    fn complains_of_memory_without_a_guard() {
        let memory = |guards, maps| Memory {
            hierarchy: "v2".to_owned(),
            guards,
            service: 0,
            maps,
            programs: 1 << 20,
        };
        assert!(memory_complaint("6.12", &memory(0, 3 << 20)).is_none());
        assert!(memory_complaint("6.12", &memory(0, (3 << 20) + 1)).is_some());
        assert!(memory_complaint("6.12", &memory(100, 9 << 20)).is_none());
        assert!(memory_complaint("6.1", &memory(0, 9 << 20)).is_none());
    }
}
