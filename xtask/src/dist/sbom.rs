//! The software bill of materials: everything inside the binary, as a CycloneDX document.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    VERSION,
    linked::{Crate, Key, Linked},
    sums, time,
};

/// Makes the document. `built`: the time of the commit, in seconds since 1970.
pub(super) fn document(linked: &Linked, binary: &Path, built: &str) -> Result<String> {
    let root = ("freezer-guard".to_owned(), VERSION.to_owned());
    let this = linked
        .crates
        .get(&root)
        .context("the crate itself is linked")?;
    let parts = toolchain(linked);
    let mut components = parts.clone();
    let mut dependencies = Vec::new();
    for (key, krate) in &linked.crates {
        let mut uses: Vec<_> = krate.uses.iter().map(reference).collect();
        if *key == root {
            // The object inside the binary, and the libraries of the compilers.
            let bpf = linked
                .crates
                .keys()
                .filter(|key| key.0 == "freezer-guard-ebpf");
            uses.extend(bpf.map(reference));
            let references = parts.iter().filter_map(|part| part["bom-ref"].as_str());
            uses.extend(references.map(str::to_owned));
        } else {
            components.push(library(key, krate));
        }
        dependencies.push(json!({ "ref": reference(key), "dependsOn": uses }));
    }
    let mut main = library(&root, this);
    main["type"] = "application".into();
    main["hashes"] = hashes(&sums::sha256(binary)?);
    let document = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": time::format(built, "+%Y-%m-%dT%H:%M:%SZ")?,
            "lifecycles": [{ "phase": "build" }],
            "component": main,
        },
        "components": components,
        "dependencies": dependencies,
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

/// The name of a crate in the document.
fn reference((name, version): &Key) -> String {
    format!("pkg:cargo/{name}@{}", escape(version))
}

fn escape(version: &str) -> String {
    version.replace('+', "%2B").replace('~', "%7E")
}

fn hashes(sha256: &str) -> Value {
    json!([{ "alg": "SHA-256", "content": sha256 }])
}

fn library(key: &Key, krate: &Crate) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": reference(key),
        "name": key.0,
        "version": key.1,
        // Before SPDX, cargo separated alternatives by slashes.
        "licenses": [{ "expression": krate.licence.replace('/', " OR ") }],
    });
    if let Some(checksum) = &krate.checksum {
        component["purl"] = reference(key).into();
        component["hashes"] = hashes(checksum);
    }
    if let Some(repository) = &krate.repository {
        component["externalReferences"] = json!([{ "type": "vcs", "url": repository }]);
    }
    component
}

/// The libraries that come with the compilers.
fn toolchain(linked: &Linked) -> Vec<Value> {
    let Linked {
        rustc,
        glibc,
        distribution,
        ..
    } = linked;
    let std = format!("pkg:generic/rust-standard-library@{}", escape(rustc));
    let libc = format!("pkg:deb/{distribution}/glibc@{}?arch=source", escape(glibc));
    [
        ("rust-standard-library", rustc, "MIT OR Apache-2.0", std),
        ("glibc", glibc, "LGPL-2.1-or-later", libc),
    ]
    .map(|(name, version, licence, purl)| {
        json!({
            "type": "library",
            "bom-ref": purl,
            "name": name,
            "version": version,
            "licenses": [{ "expression": licence }],
            "purl": purl,
        })
    })
    .to_vec()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use serde_json::Value;

    use super::document;
    use crate::dist::linked::Linked;

    #[test]
    fn each_component_is_described_once_and_each_reference_leads_to_one() {
        let linked = Linked::find(crate::machine::Machine::host()).expect("cargo knows it");
        let document = document(&linked, Path::new("/proc/self/exe"), "0").expect("it is made");
        let document: Value = serde_json::from_str(&document).expect("it is JSON");
        assert_eq!(document["metadata"]["timestamp"], "1970-01-01T00:00:00Z");
        let components = document["components"].as_array().expect("a list").iter();
        let main = &document["metadata"]["component"];
        let mut known = BTreeSet::new();
        for component in components.chain([main]) {
            let reference = component["bom-ref"].as_str().expect("a name");
            assert!(known.insert(reference), "{reference} is there twice");
            assert!(
                component["licenses"][0]["expression"].is_string(),
                "{reference}"
            );
        }
        for name in [
            "pkg:cargo/tokio@",
            "pkg:cargo/aya-ebpf@",
            "pkg:deb/",
            "pkg:generic/rust-",
        ] {
            assert!(known.iter().any(|found| found.starts_with(name)), "{name}");
        }
        let dependencies = document["dependencies"].as_array().expect("a list");
        for dependency in dependencies {
            let uses = dependency["dependsOn"].as_array().expect("a list").iter();
            for reference in uses.chain([&dependency["ref"]]) {
                let reference = reference.as_str().expect("a name");
                assert!(known.contains(reference), "{reference} is not described");
            }
        }
    }
}
