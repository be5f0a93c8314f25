// Package zero looks for zeros, as those that end a tar.
package zero

import "bytes"

// All reports whether b has no other bytes than zeros.
func All(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }
