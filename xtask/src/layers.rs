//! The order of the rooms: nothing imports in a circle or upwards, and no file is long.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, ItemMod, ItemUse, UseTree,
    visit::{self, Visit},
};

use crate::build::workspace;

/// The crates whose files are looked at.
const CRATES: [&str; 6] = [
    "freezer-guard",
    "freezer-guard-abi",
    "freezer-guard-bench",
    "freezer-guard-ebpf",
    "tests",
    "xtask",
];

/// The rooms of `freezer-guard`: each imports from those before it only.
const ROOMS: [&str; 11] = [
    "sys", "words", "quirks", "cgroup", "kernel", "guard", "criu", "report", "doctor", "daemon",
    "cli",
];

/// A module's path below its crate: `guard::marks`, or nothing for the crate's root.
type Module = Vec<String>;

/// The modules of a crate, with what each imports by `use`.
struct Modules(BTreeMap<Module, File>);

struct File {
    imports: Vec<Vec<String>>,
    /// What it hands on: the name, and the path that it comes from.
    exports: BTreeMap<String, Vec<String>>,
}

impl Modules {
    fn of(name: &str) -> Self {
        let source = workspace().join(name).join("src");
        let mut files = Vec::new();
        list(&source, &mut files);
        let has_library = source.join("lib.rs").exists();
        let modules = files.into_iter().map(|path| {
            let mut module = module_of(path.strip_prefix(&source).expect("it is below"));
            if has_library && path == source.join("main.rs") {
                module.push("main".to_owned());
            }
            let text = fs::read_to_string(&path).expect("a file of ours can be read");
            let parsed = syn::parse_file(&text).expect("it compiles");
            let mut imports = Imports::default();
            imports.visit_file(&parsed);
            (module.clone(), imports.resolved(&module))
        });
        Self(modules.collect())
    }

    /// The module that an imported path leads to, through those that hand it on.
    fn target(&self, path: &[String]) -> Option<&Module> {
        let depth = (0..=path.len())
            .rev()
            .find(|depth| self.0.contains_key(&path[..*depth]))?;
        let (module, file) = self.0.get_key_value(&path[..depth])?;
        let handed_on = path.get(depth).and_then(|name| file.exports.get(name));
        match handed_on {
            Some(origin) if origin != path => self.target(origin),
            _ => Some(module),
        }
    }

    /// The imports of each module. Imports from a module around it do not count: `mod.rs` holds the
    /// common parts of a directory.
    fn arrows(&self) -> BTreeMap<&Module, BTreeSet<&Module>> {
        let mut arrows: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (module, file) in &self.0 {
            let targets = file.imports.iter().filter_map(|path| self.target(path));
            let others = targets.filter(|target| !module.starts_with(target));
            arrows.insert(module, others.collect());
        }
        arrows
    }
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a folder of ours can be read") {
        let path = entry.expect("and its entries").path();
        if path.is_dir() {
            list(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// `lib.rs` is the root, and `main.rs` where there is none.
fn module_of(file: &Path) -> Module {
    let mut module: Module = file
        .with_extension("")
        .components()
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .collect();
    let last = module.last().cloned().unwrap_or_default();
    if last == "mod" || module.len() == 1 && (last == "lib" || last == "main") {
        module.pop();
    }
    module
}

/// The paths of `use` items, tests left out.
#[derive(Default)]
struct Imports(Vec<(Vec<String>, Option<String>)>);

impl<'a> Visit<'a> for Imports {
    fn visit_item_mod(&mut self, item: &'a ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'a ItemUse) {
        let is_public = !matches!(item.vis, syn::Visibility::Inherited);
        self.add(&item.tree, &mut Vec::new(), is_public);
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<syn::Ident>()
                .is_ok_and(|word| word == "test")
    })
}

impl Imports {
    fn add(&mut self, tree: &UseTree, path: &mut Vec<String>, is_public: bool) {
        let (name, shown) = match tree {
            UseTree::Path(step) => {
                path.push(step.ident.to_string());
                self.add(&step.tree, path, is_public);
                path.pop();
                return;
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add(tree, path, is_public);
                }
                return;
            }
            UseTree::Name(name) => (Some(name.ident.to_string()), name.ident.to_string()),
            UseTree::Rename(name) => (Some(name.ident.to_string()), name.rename.to_string()),
            UseTree::Glob(_) => (None, String::new()),
        };
        let mut whole = path.clone();
        whole.extend(name.filter(|name| name != "self"));
        self.0.push((whole, is_public.then_some(shown)));
    }

    /// The same from the crate's root. What does not begin with a module of the crate is
    /// another crate's.
    fn resolved(self, module: &Module) -> File {
        let mut file = File {
            imports: Vec::new(),
            exports: BTreeMap::new(),
        };
        for (path, shown) in self.0 {
            let from_root = match path[0].as_str() {
                "crate" | "freezer_guard" | "freezer_guard_abi" => path[1..].to_vec(),
                "self" => [module, &path[1..]].concat(),
                "super" => {
                    let ups = path.iter().take_while(|step| *step == "super").count();
                    let above = &module[..module.len().saturating_sub(ups)];
                    [above, &path[ups..]].concat()
                }
                // A child of this module, or another crate.
                _ => [module.as_slice(), &path].concat(),
            };
            if let Some(shown) = shown {
                file.exports.insert(shown, from_root.clone());
            }
            file.imports.push(from_root);
        }
        file
    }
}

/// The modules that a module imports from, and those that these import from, and so on.
fn reachable<'a>(
    module: &Module,
    arrows: &BTreeMap<&'a Module, BTreeSet<&'a Module>>,
) -> BTreeSet<&'a Module> {
    let mut reached = BTreeSet::new();
    let mut left: Vec<_> = arrows[module].iter().copied().collect();
    while let Some(next) = left.pop() {
        if reached.insert(next) {
            left.extend(&arrows[next]);
        }
    }
    reached
}

#[test]
fn nothing_imports_in_a_circle() {
    let mut circles = BTreeSet::new();
    for name in CRATES {
        let modules = Modules::of(name);
        let arrows = modules.arrows();
        let reached: BTreeMap<_, _> = arrows
            .keys()
            .map(|module| (*module, reachable(module, &arrows)))
            .collect();
        for (module, others) in &reached {
            let back = others
                .iter()
                .filter(|other| reached[**other].contains(module));
            let circle: Vec<_> = back.map(|other| other.join("::")).collect();
            if !circle.is_empty() {
                circles.insert(format!("{name}: {}", circle.join(", ")));
            }
        }
    }
    assert!(circles.is_empty(), "{circles:#?}");
}

/// A file has one idea, and a reader sees it whole.
#[test]
fn no_file_is_long() {
    const LINES: usize = 450;
    for name in CRATES.into_iter().filter(|name| *name != "tests") {
        let mut files = Vec::new();
        list(&workspace().join(name).join("src"), &mut files);
        for path in files {
            let lines = fs::read_to_string(&path).map_or(0, |text| text.lines().count());
            assert!(lines <= LINES, "{} has {lines} lines", path.display());
        }
    }
}

/// A reader sees a function whole, too. (The attributes and the doc comment do not count.)
#[test]
fn no_function_is_long() {
    const LINES: usize = 60;
    let mut long = Vec::new();
    for name in CRATES.into_iter().filter(|name| *name != "tests") {
        let mut files = Vec::new();
        list(&workspace().join(name).join("src"), &mut files);
        for path in files {
            let text = fs::read_to_string(&path).expect("a file of ours can be read");
            let lines: Vec<_> = text.lines().collect();
            for (start, line) in lines.iter().enumerate() {
                let indent = line.len() - line.trim_start().len();
                let is_function = line.trim_start().split(' ').any(|word| word == "fn");
                if !is_function || line.trim_start().starts_with("//") {
                    continue;
                }
                // rustfmt puts the last brace below the first word.
                let end = format!("{}}}", " ".repeat(indent));
                let rest = lines[start..].iter();
                let length = 1 + rest.take_while(|line| **line != end).count();
                if length > LINES && line.ends_with(['{', '(']) {
                    long.push(format!("{}:{}: {length} lines", path.display(), start + 1));
                }
            }
        }
    }
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn nothing_imports_upwards() {
    let modules = Modules::of("freezer-guard");
    let floor = |module: &Module| {
        let room = module.first()?;
        ROOMS.iter().position(|name| name == room)
    };
    for (module, targets) in modules.arrows() {
        for target in targets {
            assert!(
                floor(target) <= floor(module) || floor(module).is_none(),
                "{} imports from {}",
                module.join("::"),
                target.join("::")
            );
        }
    }
}

/// Distributions backport features, so a release says little about a kernel: see `quirks.rs`.
#[test]
fn no_decision_asks_for_the_release_of_the_kernel() {
    const WORDS: [&str; 3] = ["osrelease", "uname()", "kernel::Version"];
    // They print it.
    const PRINTERS: [&str; 2] = ["doctor/kernel.rs", "daemon/metrics.rs"];
    let source = workspace().join("freezer-guard/src");
    let mut files = Vec::new();
    list(&source, &mut files);
    let asks = |path: &PathBuf| {
        let text = fs::read_to_string(path).expect("a file of ours can be read");
        WORDS.iter().any(|word| text.contains(word))
    };
    let mut found: Vec<_> = files.into_iter().filter(asks).collect();
    found.sort();
    let mut expected = PRINTERS.map(|name| source.join(name));
    expected.sort();
    assert_eq!(found, expected);
}
