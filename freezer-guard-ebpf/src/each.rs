//! Loops as callbacks. The verifier walks a callback once, however often the kernel calls
//! it (`bpf_for_each_map_elem`, Linux 5.13); a loop it walks once for each turn.
//!
//! Before Linux 6.7 the verifier assumes in every turn the values that it knows before the first
//! turn, and removes the branches that no turn takes with these values. So a word that a callback
//! changes and reads has to be unknown to the verifier at the start: see
//! [`kernel::zero`](crate::kernel::zero).

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_for_each_map_elem;

/// What a callback returns to have the next element, and to end the loop.
pub(crate) const GO_ON: u64 = 0;
/// See [`GO_ON`].
pub(crate) const STOP: u64 = 1;

/// A callback: the map, a key of it, the value of that key, and the caller's `context`.
pub(crate) type Callback<K, V, C> = extern "C" fn(*const c_void, *const K, *mut V, *mut C) -> u64;

/// Calls `body` with each element of `map` until it returns [`STOP`].
///
/// `K` and `V` are what `map` holds, and `context` is a value on the caller's stack: the
/// verifier checks both.
#[inline(always)]
pub(crate) fn element<M, K, V, C>(map: &'static M, body: Callback<K, V, C>, context: &mut C) {
    // SAFETY: the helper takes a map, a function that the verifier has walked, and a pointer
    // that it hands to that function and nobody else.
    unsafe {
        bpf_for_each_map_elem(
            (&raw const *map).cast_mut().cast(),
            body as *mut c_void,
            (&raw mut *context).cast(),
            0,
        );
    }
}
