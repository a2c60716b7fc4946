//! A pod of the DaemonSet as options of `podman run`. An unknown field is an error: the test would leave it
//! out.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::integration::scratch_folder;

/// The configuration that the ConfigMap has.
const CONFIG: &str = include_str!("../../../../packaging/kubernetes/base/config.toml");

/// Returns the texts of a list.
pub(super) fn texts(list: &Value) -> Result<Vec<&str>> {
    let list = list.as_array().context("a list")?;
    list.iter()
        .map(|text| text.as_str().context("a text"))
        .collect()
}

/// podman's options for a pod. A field that is not known here is an error: the test would leave it out.
pub(super) fn pod_arguments(pod: &Value) -> Result<Vec<String>> {
    let mut arguments = Vec::new();
    for (key, value) in pod.as_object().context("an object")? {
        match (key.as_str(), value) {
            ("hostPID", Value::Bool(true)) => arguments.extend(words(["--pid", "host"])),
            ("hostUsers", Value::Bool(true)) => arguments.extend(words(["--userns", "host"])),
            ("volumes", volumes) => arguments.extend(volume_arguments(pod, volumes)?),
            ("automountServiceAccountToken" | "enableServiceLinks", Value::Bool(false))
            | ("containers" | "nodeSelector" | "tolerations", _)
            | ("priorityClassName" | "terminationGracePeriodSeconds", _) => {}
            (key, value) => bail!("{key}: {value}"),
        }
    }
    Ok(arguments)
}

fn words<const N: usize>(words: [&str; N]) -> [String; N] {
    words.map(str::to_owned)
}

/// Each mount of the container, with the volume that it names.
fn volume_arguments(pod: &Value, volumes: &Value) -> Result<Vec<String>> {
    let volumes = volumes.as_array().context("a list")?;
    let mut arguments = Vec::new();
    for mount in pod["containers"][0]["volumeMounts"]
        .as_array()
        .context("a list")?
    {
        let mut named = volumes
            .iter()
            .filter(|volume| volume["name"] == mount["name"]);
        let volume = named.next().with_context(|| mount.to_string())?;
        let source = match (
            volume["hostPath"].as_object(),
            volume["configMap"].as_object(),
        ) {
            (Some(host), None) => {
                let path = host["path"].as_str().context("a path")?;
                // As the kubelet does.
                if host["type"] == "DirectoryOrCreate" {
                    fs::create_dir_all(path)?;
                }
                ensure!(Path::new(path).is_dir(), "{path} is no directory");
                path.to_owned()
            }
            (None, Some(_)) => {
                let dir = scratch_folder("config")?;
                fs::write(dir.join("config.toml"), CONFIG)?;
                dir.display().to_string()
            }
            _ => bail!("{volume}"),
        };
        let inside = mount["mountPath"].as_str().context("a path")?;
        let mode = if mount["readOnly"] == true { ":ro" } else { "" };
        arguments.extend(words(["--volume", &format!("{source}:{inside}{mode}")]));
    }
    Ok(arguments)
}

/// podman's options for a container.
pub(super) fn container_arguments(container: &Value) -> Result<Vec<String>> {
    let mut arguments = Vec::new();
    for (key, value) in container.as_object().context("an object")? {
        match key.as_str() {
            "securityContext" => arguments.extend(security_arguments(value)?),
            "resources" => {
                let limits = value["limits"].as_object().context("limits")?;
                ensure!(limits.len() == 1, "{value}");
                let memory = limits["memory"].as_str().context("a text")?;
                let bytes = memory.strip_suffix("Mi").context("MiB")?;
                arguments.extend(words(["--memory", &format!("{bytes}m")]));
            }
            "name" | "image" | "imagePullPolicy" | "args" | "volumeMounts" => {}
            "startupProbe" | "livenessProbe" | "readinessProbe" => {}
            key => bail!("{key}: {value}"),
        }
    }
    Ok(arguments)
}

fn security_arguments(context: &Value) -> Result<Vec<String>> {
    let mut arguments = Vec::new();
    let mut option = |name: &str, value: &str| {
        arguments.push(name.to_owned());
        arguments.push(value.to_owned());
    };
    for (key, value) in context.as_object().context("an object")? {
        match (key.as_str(), value) {
            ("runAsUser", user) => {
                option("--user", &format!("{user}:{}", context["runAsGroup"]));
            }
            ("allowPrivilegeEscalation", Value::Bool(false)) => {
                option("--security-opt", "no-new-privileges");
            }
            ("readOnlyRootFilesystem", Value::Bool(true)) => {
                option("--read-only=true", "--read-only-tmpfs=false");
            }
            ("capabilities", capabilities) => {
                for name in texts(&capabilities["drop"])? {
                    option("--cap-drop", name);
                }
                for name in texts(&capabilities["add"])? {
                    option("--cap-add", name);
                }
            }
            ("appArmorProfile", profile) if profile["type"] == "Unconfined" => {
                option("--security-opt", "apparmor=unconfined");
            }
            ("seLinuxOptions", options) => {
                let kind = options["type"].as_str().context("a type")?;
                option("--security-opt", &format!("label=type:{kind}"));
            }
            // podman's default.
            ("seccompProfile", profile) if profile["type"] == "RuntimeDefault" => {}
            ("runAsGroup", _) | ("privileged", Value::Bool(false)) => {}
            (key, value) => bail!("{key}: {value}"),
        }
    }
    Ok(arguments)
}
