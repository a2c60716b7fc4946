//! bpf(2).

use std::{
    ffi::{CStr, CString},
    io,
    marker::PhantomData,
    mem,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    path::Path,
};

use aya::{Pod, maps::MapData};
use aya_obj::{
    EbpfSectionKind,
    generated::{
        bpf_attach_type, bpf_attr, bpf_cmd, bpf_func_info, bpf_insn, bpf_map_type, bpf_prog_type,
    },
};

/// What the kernel has to know to attach a program.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attachment {
    pub(crate) program_type: bpf_prog_type,
    pub(crate) attach_type: bpf_attach_type,
    /// The BTF id of what it is attached to.
    pub(crate) target: u32,
}

impl Attachment {
    /// Of a program that nothing runs but bpf(2).
    pub(crate) const BY_BPF: Self = Self {
        program_type: bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT,
        // 0, which is what programs have that need none.
        attach_type: bpf_attach_type::BPF_CGROUP_INET_INGRESS,
        target: 0,
    };
}

/// The functions of a program, for the verifier: which are global, and what they take.
pub(crate) struct Functions<'a> {
    /// The BTF that describes them; see [`load_btf`].
    pub(crate) btf: &'a OwnedFd,
    /// Where each begins.
    pub(crate) places: &'a [bpf_func_info],
}

/// Hands BTF of our own to the kernel.
///
/// # Errors
/// What bpf(2) says.
pub(crate) fn load_btf(btf: &[u8]) -> io::Result<OwnedFd> {
    // SAFETY: as in `load`.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: the arm of the union that `BPF_BTF_LOAD` reads.
    let load = unsafe { &mut attributes.__bindgen_anon_7 };
    load.btf = btf.as_ptr() as u64;
    load.btf_size = btf.len() as u32;
    // SAFETY: `btf` outlives the call.
    let btf = unsafe { bpf(bpf_cmd::BPF_BTF_LOAD, &mut attributes) }?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(btf) })
}

/// Makes an empty map. `sizes`: of a key and of a value, bytes; its most entries; and its flags.
fn create(
    name: &str,
    map_type: u32,
    sizes: [u32; 4],
    inner: Option<&OwnedFd>,
) -> io::Result<OwnedFd> {
    // SAFETY: as in `load`.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: the arm of the union that `BPF_MAP_CREATE` reads.
    let create = unsafe { &mut attributes.__bindgen_anon_1 };
    create.map_type = map_type;
    [
        create.key_size,
        create.value_size,
        create.max_entries,
        create.map_flags,
    ] = sizes;
    if let Some(inner) = inner {
        create.inner_map_fd = inner.as_raw_fd() as u32;
    }
    put_name(&mut create.map_name, name);
    // SAFETY: there are no pointers in it.
    let map = unsafe { bpf(bpf_cmd::BPF_MAP_CREATE, &mut attributes) }?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(map) })
}

/// Sets the first element of an array, whose values are as long as this one.
fn put_first(array: &OwnedFd, value: &[u8]) -> io::Result<()> {
    let key = 0_u32;
    // SAFETY: as in `load`.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: the arm of the union that `BPF_MAP_UPDATE_ELEM` reads.
    let update = unsafe { &mut attributes.__bindgen_anon_2 };
    update.map_fd = array.as_raw_fd() as u32;
    update.key = &raw const key as u64;
    update.__bindgen_anon_1.value = value.as_ptr() as u64;
    // SAFETY: both outlive the call and are as long as the map's keys and values.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attributes) }?;
    Ok(())
}

/// Waits until every program that runs now has ended, some 10 ms: an RCU grace period, for which
/// the kernel waits when a map of maps is changed (`maybe_wait_bpf_programs`). (The other way to
/// wait for one, `membarrier(MEMBARRIER_CMD_GLOBAL)`, does not wait on one CPU and fails with
/// `nohz_full`.)
///
/// # Errors
/// Those of bpf(2).
pub(crate) fn wait_for_programs() -> io::Result<()> {
    use bpf_map_type::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_ARRAY_OF_MAPS};
    let sizes = [4, 4, 1, 0];
    let inner = create("inner", BPF_MAP_TYPE_ARRAY as u32, sizes, None)?;
    let kind = BPF_MAP_TYPE_ARRAY_OF_MAPS as u32;
    let outer = create("outer", kind, sizes, Some(&inner))?;
    put_first(&outer, &inner.as_raw_fd().to_ne_bytes())
}

/// Makes a map. One of maps takes such as `inner`. One for globals holds them, and user
/// space cannot change those that are read-only any more.
///
/// # Errors
/// Those of bpf(2).
pub(crate) fn create_map(
    name: &str,
    definition: &aya_obj::Map,
    inner: Option<&OwnedFd>,
) -> io::Result<OwnedFd> {
    let map = create(
        name,
        definition.map_type(),
        [
            definition.key_size(),
            definition.value_size(),
            definition.max_entries(),
            definition.map_flags(),
        ],
        inner,
    )?;
    let data = definition.data();
    if !data.is_empty() {
        let size = u32::try_from(data.len()).map_err(io::Error::other)?;
        let is = [
            definition.map_type(),
            definition.key_size(),
            definition.value_size(),
        ];
        if is != [bpf_map_type::BPF_MAP_TYPE_ARRAY as u32, 4, size] {
            return Err(io::ErrorKind::InvalidData.into());
        }
        put_first(&map, data)?;
    }
    if definition.section_kind() == EbpfSectionKind::Rodata {
        // SAFETY: as in `load`.
        let mut attributes: bpf_attr = unsafe { mem::zeroed() };
        attributes.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
        // SAFETY: there are no pointers in it.
        unsafe { bpf(bpf_cmd::BPF_MAP_FREEZE, &mut attributes) }?;
    }
    Ok(map)
}

/// As much of it as there is room for, and a NUL.
fn put_name(to: &mut [libc::c_char], name: &str) {
    let room = to.len() - 1;
    for (to, from) in to[..room].iter_mut().zip(name.bytes()) {
        *to = from as _;
    }
}

/// Loads a program.
///
/// # Errors
/// What bpf(2) says, with the log of the verifier.
pub(crate) fn load(
    name: &str,
    instructions: &[bpf_insn],
    functions: Option<Functions<'_>>,
    license: &CStr,
    attachment: Attachment,
) -> Result<OwnedFd, (io::Error, String)> {
    /// As much of the log as is kept, bytes; the kernel takes up to 1 GiB.
    const LOG: usize = 16 << 20;
    // SAFETY: for the kernel, and for this union of integers, all zeros is a value.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: the arm of the union that `BPF_PROG_LOAD` reads.
    let load = unsafe { &mut attributes.__bindgen_anon_3 };
    load.prog_type = attachment.program_type as u32;
    load.expected_attach_type = attachment.attach_type as u32;
    load.attach_btf_id = attachment.target;
    load.insns = instructions.as_ptr() as u64;
    load.insn_cnt = instructions.len() as u32;
    if let Some(Functions { btf, places }) = functions {
        load.prog_btf_fd = btf.as_raw_fd() as u32;
        load.func_info = places.as_ptr() as u64;
        load.func_info_cnt = places.len() as u32;
        load.func_info_rec_size = size_of::<bpf_func_info>() as u32;
    }
    load.license = license.as_ptr() as u64;
    put_name(&mut load.prog_name, name);
    // SAFETY: `instructions`, `functions` and `license` outlive the call.
    let error = match unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes) } {
        // SAFETY: a new descriptor that nobody else owns.
        Ok(program) => return Ok(unsafe { OwnedFd::from_raw_fd(program) }),
        // The second time it may be another one: before 6.4 a log that does not
        // fit is an error itself.
        Err(error) => error,
    };
    let mut log = vec![0_u8; LOG];
    // SAFETY: as above.
    let load = unsafe { &mut attributes.__bindgen_anon_3 };
    load.log_level = 1;
    load.log_buf = log.as_mut_ptr() as u64;
    load.log_size = log.len() as u32;
    // SAFETY: as above; the kernel writes `log_size` bytes of `log` at most.
    match unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes) } {
        // SAFETY: a new descriptor that nobody else owns.
        Ok(program) => Ok(unsafe { OwnedFd::from_raw_fd(program) }),
        Err(_) => {
            let log = CStr::from_bytes_until_nul(&log).unwrap_or_default();
            Err((error, log.to_string_lossy().into_owned()))
        }
    }
}

/// A hash map whose keys and values have the sizes of `K` and `V`.
#[derive(Debug)]
pub(crate) struct HashMapFd<K, V> {
    fd: OwnedFd,
    holds: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> HashMapFd<K, V> {
    /// Another descriptor of this map.
    ///
    /// # Errors
    /// When it holds something else, or there are too many descriptors.
    pub(crate) fn of(map: &MapData) -> io::Result<Self> {
        let info = map.info().map_err(io::Error::other)?;
        let sizes = (info.key_size() as usize, info.value_size() as usize);
        if sizes != (size_of::<K>(), size_of::<V>()) {
            return Err(io::Error::other("its keys or values have another size"));
        }
        Ok(Self {
            fd: map.fd().as_fd().try_clone_to_owned()?,
            holds: PhantomData,
        })
    }

    /// Every entry. What comes or goes meanwhile may be missing.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub(crate) fn entries(&self) -> io::Result<Vec<(K, V)>> {
        entries(self.fd.as_fd())
    }
}

/// Every entry of a hash map that holds `K` and `V`, as many at a time as a buffer holds
/// (Linux 5.6).
fn entries<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut entries = Vec::new();
    // More than the entries that share one place in a hash table.
    let mut room = 256;
    let mut place = 0_u32;
    let mut is_first = true;
    loop {
        let mut keys = Vec::<K>::with_capacity(room);
        let mut values = Vec::<V>::with_capacity(room);
        let mut next = 0_u32;
        // SAFETY: as in `load`.
        let mut attributes: bpf_attr = unsafe { mem::zeroed() };
        // SAFETY: the arm of the union that `BPF_MAP_LOOKUP_BATCH` reads and writes.
        let batch = unsafe { &mut attributes.batch };
        batch.map_fd = map.as_raw_fd() as u32;
        batch.count = room as u32;
        batch.keys = keys.as_mut_ptr() as u64;
        batch.values = values.as_mut_ptr() as u64;
        batch.in_batch = if is_first { 0 } else { &raw const place as u64 };
        batch.out_batch = &raw mut next as u64;
        // SAFETY: both buffers have room for as many; the places are of a hash map, a
        // `u32` each.
        let result = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attributes) };
        let is_last = match &result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                room *= 2;
                continue;
            }
            Err(_) => return result.map(|_| entries),
        };
        // SAFETY: the kernel has written so many of each, and says how many.
        unsafe {
            let count = (attributes.batch.count as usize).min(room);
            keys.set_len(count);
            values.set_len(count);
        }
        entries.extend(keys.into_iter().zip(values));
        if is_last {
            return Ok(entries);
        }
        (place, is_first) = (next, false);
    }
}

/// Pins a map, a program or a link in bpffs.
///
/// # Errors
/// What bpf(2) says.
pub(crate) fn pin(object: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: as in `load`.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: the arm of the union that `BPF_OBJ_PIN` reads.
    let pin = unsafe { &mut attributes.__bindgen_anon_4 };
    pin.pathname = path.as_ptr() as u64;
    pin.bpf_fd = object.as_raw_fd() as u32;
    // SAFETY: `path` and `object` outlive the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attributes) }.map(drop)
}

/// Opens a map or a program that is pinned. (aya's `from_pin` asks for the BTF that a
/// program was loaded with too, by its id, which takes `CAP_SYS_ADMIN`; and finds out what
/// the kernel can do, by two dozen calls, 1,200,000 instructions.)
///
/// # Errors
/// What bpf(2) says.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: as in `load`.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: the arm of the union that `BPF_OBJ_GET` reads.
    let object = unsafe { &mut attributes.__bindgen_anon_4 };
    object.pathname = path.as_ptr() as u64;
    // SAFETY: `path` outlives the call.
    let object = unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attributes) }?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(object) })
}

/// Runs a program for a raw tracepoint on the calling thread: what it returns.
///
/// # Errors
/// What bpf(2) says.
pub(crate) fn test_run(program: &OwnedFd, arguments: &[u64]) -> io::Result<u32> {
    // SAFETY: as in `load`.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: the arm of the union that `BPF_PROG_TEST_RUN` reads and writes.
    let test = unsafe { &mut attributes.test };
    test.prog_fd = program.as_raw_fd() as u32;
    test.ctx_in = arguments.as_ptr() as u64;
    test.ctx_size_in = size_of_val(arguments) as u32;
    // SAFETY: `arguments` outlive the call, and are only read.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attributes) }?;
    // SAFETY: as above.
    Ok(unsafe { attributes.test.retval })
}

/// Attaches a program of the type `BPF_PROG_TYPE_TRACING` or `_LSM` to what it
/// was loaded for, and returns the link (`bpf_raw_tracepoint_open`).
///
/// # Errors
/// What bpf(2) says.
pub(crate) fn attach(program: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: as in `load`. No name: it was loaded with one.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    attributes.raw_tracepoint.prog_fd = program.as_raw_fd() as u32;
    // SAFETY: there are no pointers in it.
    let link = unsafe { bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attributes) }?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// Makes an iterator of a program that was loaded as one, and returns the link.
///
/// # Errors
/// What bpf(2) says.
pub(crate) fn attach_iterator(program: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: as in `load`.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    attributes.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attributes.link_create.attach_type = bpf_attach_type::BPF_TRACE_ITER as u32;
    // SAFETY: there are no pointers in it.
    let link = unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attributes) }?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// bpf(2): 0, or a new descriptor.
///
/// # Safety
/// Every pointer in `attributes` is valid for what `command` does with it.
unsafe fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<RawFd> {
    // SAFETY: the caller's; the size is that of the whole union, and what the
    // kernel does not know of it is zero.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            &raw mut *attributes,
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as RawFd)
}
