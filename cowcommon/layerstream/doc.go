// Package layerstream frames native streams of filesystems, so that layers can go through a pipe or a file.
//
// A stream has a layer and, if its sender says so, the parents of that layer before it. Each has a header, the native
// stream in chunks, and a digest. A [Reader] gives the last chunk of a layer only after it has verified the digest, and
// has seen the beginning of the next. So a receiver that needs the end of a native stream never completes a layer that was cut off
// or damaged.
//
// A Reader trusts nothing: lengths are bounded, and each header has one form only. docs/reference/layer-streams.md
// specifies the format.
package layerstream
