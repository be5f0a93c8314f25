package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestRootStyleOfDriver(t *testing.T) {
	a := newStore(t)
	var status map[string]string
	a.json(t, &status, "status")
	assert.Equal(t, "snapshot", status["Root Style"])
	a.json(t, &status, "status", "--storage-opt", "btrfs.root_style=shared")
	assert.Equal(t, "shared", status["Root Style"])
}
