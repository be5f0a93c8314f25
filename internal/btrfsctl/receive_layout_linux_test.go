package btrfsctl

import (
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
)

// TestEncodedLayout holds the arguments of ENCODED_WRITE to the size that its request number encodes.
func TestEncodedLayout(t *testing.T) {
	assert.Equal(t, uintptr(iocEncodedWrite>>16&(1<<14-1)), unsafe.Sizeof(encodedIOArgs{}))
	assert.Equal(t, uintptr(56), unsafe.Offsetof(encodedIOArgs{}.compression))
}
