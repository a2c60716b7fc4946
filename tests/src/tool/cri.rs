//! A client for Kubernetes' Container Runtime Interface, as far as a kubelet that checkpoints
//! a container needs it. The messages have the fields that are used, with the numbers of
//! `runtime/v1/api.proto`.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use prost::Message;
use tonic::{
    Request,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

const SOCKET: &str = "unix:///run/containerd/containerd.sock";
/// `NamespaceMode.NODE`: the host's own.
const NODE: i32 = 2;
/// Seconds that a checkpoint may take.
const CHECKPOINT_TIMEOUT: i64 = 100;

/// What to call.
#[derive(clap::Subcommand)]
pub(super) enum Call {
    /// Start a pod with one container on the host's network; prints both ids
    Run {
        /// The pod's name
        name: String,
        image: String,
        /// The container's program
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Check that it has this image
    HasImage { image: String },
    /// CheckpointContainer into an archive
    Checkpoint { container: String, archive: PathBuf },
    /// Run a command in the container, and end as it ends
    Exec {
        container: String,
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Stop the container
    Stop { container: String },
    /// Stop and remove the pod
    Remove { pod: String },
}

/// Calls it.
pub(super) fn run(call: Call) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(answer(call))
}

async fn answer(call: Call) -> Result<()> {
    let channel = Endpoint::from_static(SOCKET).connect().await;
    let mut client = Client(Grpc::new(channel.context("connect to containerd")?));
    match call {
        Call::Run {
            name,
            image,
            command,
        } => {
            let config = Some(PodSandboxConfig::named(&name));
            let request = RunPodSandboxRequest { config };
            let pod: Id = client.call("RunPodSandbox", request).await?;
            let container = client.start(&name, &pod.id, image, command).await?;
            println!("{}\n{container}", pod.id);
        }
        Call::HasImage { image } => {
            let request = ImageStatusRequest {
                image: Some(ImageSpec { image }),
            };
            let path = "/runtime.v1.ImageService/ImageStatus";
            let response: ImageStatusResponse = client.call_at(path, request).await?;
            ensure!(response.image.is_some(), "it has no such image");
        }
        Call::Checkpoint { container, archive } => {
            let request = CheckpointContainerRequest {
                container_id: container,
                location: archive.display().to_string(),
                timeout: CHECKPOINT_TIMEOUT,
            };
            let _: Empty = client.call("CheckpointContainer", request).await?;
        }
        Call::Exec { container, command } => {
            let request = ExecSyncRequest {
                container_id: container,
                cmd: command,
                timeout: 30,
            };
            let response: ExecSyncResponse = client.call("ExecSync", request).await?;
            ensure!(
                response.exit_code == 0,
                "it ended with {}",
                response.exit_code
            );
        }
        Call::Stop { container } => {
            let _: Empty = client.call("StopContainer", Id { id: container }).await?;
        }
        Call::Remove { pod } => {
            let _: Empty = client
                .call("StopPodSandbox", Id { id: pod.clone() })
                .await?;
            let _: Empty = client.call("RemovePodSandbox", Id { id: pod }).await?;
        }
    }
    Ok(())
}

struct Client(Grpc<Channel>);

impl Client {
    async fn call<Q, A>(&mut self, method: &str, request: Q) -> Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path = format!("/runtime.v1.RuntimeService/{method}");
        self.call_at(&path, request).await
    }

    async fn call_at<Q, A>(&mut self, method: &str, request: Q) -> Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path = PathAndQuery::try_from(method)?;
        self.0.ready().await?;
        let codec = ProstCodec::<Q, A>::default();
        let response = self.0.unary(Request::new(request), path, codec).await;
        let response = response.map_err(|status| {
            anyhow::anyhow!("{method}: {:?}: {}", status.code(), status.message())
        })?;
        Ok(response.into_inner())
    }

    /// Creates and starts a container of a pod.
    async fn start(
        &mut self,
        name: &str,
        pod: &str,
        image: String,
        command: Vec<String>,
    ) -> Result<String> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.to_owned(),
            }),
            image: Some(ImageSpec { image }),
            command,
            log_path: format!("{name}.log"),
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(PodSandboxConfig::named(name)),
        };
        let container: Id = self.call("CreateContainer", request).await?;
        let id = container.id.clone();
        let _: Empty = self.call("StartContainer", container).await?;
        Ok(id)
    }
}

/// The requests and responses with an id alone.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct NamespaceOption {
    #[prost(int32, tag = "1")]
    network: i32,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxSandboxSecurityContext {
    #[prost(message, optional, tag = "1")]
    namespace_options: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxPodSandboxConfig {
    #[prost(message, optional, tag = "2")]
    security_context: Option<LinuxSandboxSecurityContext>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPodSandboxConfig>,
}

impl PodSandboxConfig {
    /// A pod on the host's network.
    fn named(name: &str) -> Self {
        let namespace_options = Some(NamespaceOption { network: NODE });
        let security_context = Some(LinuxSandboxSecurityContext { namespace_options });
        Self {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: name.to_owned(),
                namespace: "default".to_owned(),
            }),
            log_directory: format!("/var/log/pods/{name}"),
            linux: Some(LinuxPodSandboxConfig { security_context }),
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageStatusRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct ImageStatusResponse {
    #[prost(message, optional, tag = "1")]
    image: Option<Id>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(string, tag = "11")]
    log_path: String,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct CheckpointContainerRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, tag = "2")]
    location: String,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSyncRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, repeated, tag = "2")]
    cmd: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSyncResponse {
    #[prost(int32, tag = "3")]
    exit_code: i32,
}
