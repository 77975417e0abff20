//! The memory allocator of the program: jemalloc.
//!
//! The C library's keeps what a rush of requests took for as long as the process runs, and takes a tenth of the time of a small request.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Gives memory back to the system half a second after its last use, by a thread of its own, so that an idle node does so too.
// SAFETY: jemalloc looks for a variable of this name and of the type `char const *`, before `main`. This is a pointer of one word to bytes
// that end with a zero and live for ever. Nothing else defines the name.
#[expect(unsafe_code, reason = "the library reads its settings through a symbol")]
#[used]
#[unsafe(export_name = "_rjem_malloc_conf")]
static SETTINGS: &[u8; 59] = b"background_thread:true,dirty_decay_ms:500,muzzy_decay_ms:0\0";
