//! The manifests in packaging/kubernetes: each document is one that Kubernetes takes, the Helm chart gives
//! the same as the kustomize base, and both agree with the image and with the unit of the service.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use gtmpl::{Context, FuncError, Template, Value as Text};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Namespace},
    networking::v1::NetworkPolicy,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::{build::workspace, digest, dist};

/// The namespace of the kustomize base.
const NAMESPACE: &str = "freezer-guard";

fn top() -> PathBuf {
    workspace().join("packaging/kubernetes")
}

fn read(name: &str) -> Result<String> {
    fs::read_to_string(top().join(name)).with_context(|| format!("read {name}"))
}

fn yaml(text: &str) -> Result<Value> {
    Ok(serde_saphyr::from_str(text)?)
}

/// Reads a document into its type, which has all fields that Kubernetes knows.
fn strict<T: DeserializeOwned>(document: &Value) -> Result<T> {
    let mut unknown = Vec::new();
    let found = serde_ignored::deserialize(document, |path| unknown.push(path.to_string()))?;
    ensure!(unknown.is_empty(), "Kubernetes knows no {unknown:?}");
    Ok(found)
}

/// Checks a document against its type.
fn check(document: &Value) -> Result<()> {
    match document["kind"].as_str().unwrap_or_default() {
        "ConfigMap" => strict::<ConfigMap>(document).map(drop),
        "DaemonSet" => strict::<DaemonSet>(document).map(drop),
        "Namespace" => strict::<Namespace>(document).map(drop),
        "NetworkPolicy" => strict::<NetworkPolicy>(document).map(drop),
        kind => bail!("no type for {kind:?}"),
    }
}

/// Documents by their kind.
type Documents = BTreeMap<String, Value>;

fn by_kind(documents: impl IntoIterator<Item = Value>) -> Documents {
    let kind = |document: &Value| document["kind"].as_str().unwrap_or_default().to_owned();
    documents
        .into_iter()
        .map(|document| (kind(&document), document))
        .collect()
}

/// Builds the base as kustomize does, but for the hash in the name of the ConfigMap.
fn base() -> Result<Documents> {
    let kustomization = yaml(&read("base/kustomization.yaml")?)?;
    ensure!(kustomization["namespace"] == NAMESPACE);
    let mut documents = Vec::new();
    for name in kustomization["resources"].as_array().context("resources")? {
        let name = name.as_str().context("a name")?;
        let mut document = yaml(&read(&format!("base/{name}"))?)?;
        if document["kind"] != "Namespace" {
            document["metadata"]["namespace"] = NAMESPACE.into();
        }
        documents.push(document);
    }
    for generator in kustomization["configMapGenerator"]
        .as_array()
        .context("generators")?
    {
        let mut data = Map::new();
        for name in generator["files"].as_array().context("files")? {
            let name = name.as_str().context("a name")?;
            data.insert(name.to_owned(), read(&format!("base/{name}"))?.into());
        }
        documents.push(json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": generator["name"], "namespace": NAMESPACE },
            "data": data,
        }));
    }
    Ok(by_kind(documents))
}

/// A value for a template.
fn text(value: &Value) -> Text {
    match value {
        Value::Null => Text::Nil,
        Value::Bool(value) => Text::Bool(*value),
        Value::Number(number) => Text::from(number.as_i64().unwrap_or_default()),
        Value::String(value) => Text::from(value),
        Value::Array(values) => Text::Array(values.iter().map(text).collect()),
        Value::Object(values) => {
            let values = values
                .iter()
                .map(|(name, value)| (name.clone(), text(value)));
            Text::Map(values.collect())
        }
    }
}

fn value(text: &Text) -> Value {
    match text {
        Text::Bool(value) => (*value).into(),
        Text::Number(number) => number.as_i64().into(),
        Text::String(value) => value.clone().into(),
        Text::Array(values) => values.iter().map(value).collect(),
        Text::Map(values) | Text::Object(values) => {
            let values = values
                .iter()
                .map(|(name, text)| (name.clone(), value(text)));
            Value::Object(values.collect())
        }
        Text::NoValue | Text::Nil | Text::Function(_) => Value::Null,
    }
}

/// The functions of Helm that the chart uses (`sprig`).
fn to_json(arguments: &[Text]) -> Result<Text, FuncError> {
    let first = arguments
        .first()
        .ok_or_else(|| FuncError::AtLeastXArgs("toJson".into(), 1))?;
    Ok(Text::from(value(first).to_string()))
}

fn sha256sum(arguments: &[Text]) -> Result<Text, FuncError> {
    match arguments.first() {
        Some(Text::String(text)) => Ok(Text::from(digest::sha256(text.as_bytes()))),
        _ => Err(FuncError::Generic("sha256sum takes a text".into())),
    }
}

/// Renders the chart as `helm template --namespace freezer-guard` does.
fn chart(values: &Value) -> Result<Documents> {
    let about = yaml(&read("chart/Chart.yaml")?)?;
    let context = HashMap::from([
        ("Values".to_owned(), text(values)),
        (
            "Chart".to_owned(),
            text(&json!({ "AppVersion": about["appVersion"] })),
        ),
        (
            "Release".to_owned(),
            text(&json!({ "Namespace": NAMESPACE })),
        ),
    ]);
    let context = Context::from(Text::Object(context));
    let mut documents = Vec::new();
    for entry in fs::read_dir(top().join("chart/templates"))? {
        let path = entry?.path();
        let failed = || path.display().to_string();
        let mut template = Template::default();
        template.add_func("toJson", to_json);
        template.add_func("sha256sum", sha256sum);
        template
            .parse(fs::read_to_string(&path)?)
            .with_context(failed)?;
        let rendered = template.render(&context).with_context(failed)?;
        documents.push(yaml(&rendered).with_context(failed)?);
    }
    Ok(by_kind(documents))
}

fn default_values() -> Result<Value> {
    yaml(&read("chart/values.yaml")?)
}

/// The pod of a DaemonSet.
fn pod(documents: &Documents) -> &Value {
    &documents["DaemonSet"]["spec"]["template"]["spec"]
}

#[test]
fn kubernetes_takes_each_document() -> Result<()> {
    for documents in [base()?, chart(&default_values()?)?] {
        assert!(documents.len() >= 3, "{documents:?}");
        for (kind, document) in &documents {
            check(document).with_context(|| kind.clone())?;
        }
    }
    Ok(())
}

#[test]
fn a_wrong_field_is_found() -> Result<()> {
    let mut documents = base()?;
    let document = documents.get_mut("DaemonSet").context("it is there")?;
    document["spec"]["template"]["spec"]["hostPid"] = true.into();
    let error = check(document).expect_err("there is no such field");
    assert!(error.to_string().contains("hostPid"), "{error}");
    Ok(())
}

#[test]
fn the_chart_gives_the_base() -> Result<()> {
    let (mut base, mut chart) = (base()?, chart(&default_values()?)?);
    // `helm install --create-namespace` makes it.
    base.remove("Namespace").context("the base has one")?;
    // kustomize has a hash in the name instead.
    let daemon_set = chart.get_mut("DaemonSet").context("it is there")?;
    let metadata = daemon_set["spec"]["template"]["metadata"].as_object_mut();
    let annotations = metadata.context("an object")?.remove("annotations");
    let config = base["ConfigMap"]["data"]["config.toml"].as_str();
    let sum = digest::sha256(config.context("a text")?.as_bytes());
    assert_eq!(annotations, Some(json!({ "checksum/config": sum })));
    let config_map = chart.get_mut("ConfigMap").context("it is there")?;
    let metadata = config_map["metadata"]
        .as_object_mut()
        .context("an object")?;
    metadata.remove("labels").context("it has labels")?;
    assert_eq!(chart, base);
    Ok(())
}

#[test]
fn the_values_of_the_chart_have_an_effect() -> Result<()> {
    let mut values = default_values()?;
    values["image"] =
        json!({ "repository": "registry.example/guard", "tag": "2", "pullPolicy": "Always" });
    values["imagePullSecrets"] = json!([{ "name": "secret" }]);
    values["config"] = "[metrics]\ntextfile = \"/metrics/freezer-guard.prom\"\n".into();
    values["podAnnotations"] = json!({ "example.com/team": "a: b" });
    values["extraVolumes"] =
        json!([{ "name": "metrics", "hostPath": { "path": "/var/lib/node-exporter" } }]);
    values["extraVolumeMounts"] = json!([{ "name": "metrics", "mountPath": "/metrics" }]);
    let documents = chart(&values)?;
    for (kind, document) in &documents {
        check(document).with_context(|| kind.clone())?;
    }
    let pod = pod(&documents);
    assert_eq!(pod["containers"][0]["image"], "registry.example/guard:2");
    assert_eq!(pod["imagePullSecrets"], values["imagePullSecrets"]);
    let last = |list: &Value| list.as_array().and_then(|all| all.last()).cloned();
    assert_eq!(
        last(&pod["volumes"]).as_ref(),
        values["extraVolumes"].get(0)
    );
    let mounts = &pod["containers"][0]["volumeMounts"];
    assert_eq!(last(mounts).as_ref(), values["extraVolumeMounts"].get(0));
    assert_eq!(
        documents["ConfigMap"]["data"]["config.toml"],
        values["config"]
    );
    let annotations = &documents["DaemonSet"]["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(annotations["example.com/team"], "a: b");
    Ok(())
}

#[test]
fn the_manifests_have_the_image_that_dist_makes() -> Result<()> {
    let base = base()?;
    assert_eq!(pod(&base)["containers"][0]["image"], dist::image_name());
    let about = yaml(&read("chart/Chart.yaml")?)?;
    for key in ["version", "appVersion"] {
        assert_eq!(about[key], env!("CARGO_PKG_VERSION"), "{key}");
    }
    Ok(())
}

#[test]
fn the_container_has_the_capabilities_of_the_unit() -> Result<()> {
    let unit = fs::read_to_string(workspace().join("packaging/freezer-guard.service"))?;
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let of_unit: BTreeSet<_> = line.context("the unit has some")?.split(' ').collect();
    let base = base()?;
    let capabilities = &pod(&base)["containers"][0]["securityContext"]["capabilities"];
    assert_eq!(capabilities["drop"], json!(["ALL"]));
    let added = capabilities["add"].as_array().context("a list")?;
    let added: Vec<_> = added
        .iter()
        .map(|name| format!("CAP_{}", name.as_str().unwrap_or_default()))
        .collect();
    assert_eq!(
        added.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        of_unit
    );
    Ok(())
}

#[test]
fn names_in_the_manifest_lead_to_something() -> Result<()> {
    let base = base()?;
    let names = |list: &Value| -> BTreeSet<String> {
        let all = list.as_array().into_iter().flatten();
        all.filter_map(|entry| Some(entry["name"].as_str()?.to_owned()))
            .collect()
    };
    let pod = pod(&base);
    assert_eq!(
        names(&pod["volumes"]),
        names(&pod["containers"][0]["volumeMounts"])
    );
    let spec = &base["DaemonSet"]["spec"];
    let labels = &spec["template"]["metadata"]["labels"];
    assert_eq!(&spec["selector"]["matchLabels"], labels);
    assert_eq!(
        &base["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        labels
    );
    // The engine mounts them on directories of the image, or of the kernel's own file systems.
    for mount in pod["containers"][0]["volumeMounts"]
        .as_array()
        .context("a list")?
    {
        let path = mount["mountPath"].as_str().context("a path")?;
        let is_there = Path::new(path).starts_with("/sys") || dist::is_in_image(path);
        assert!(is_there, "the image has no {path}");
    }
    Ok(())
}
