package harness

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestBuildCowshed runs the program that StartCowshed builds.
func TestBuildCowshed(t *testing.T) {
	program, err := buildCowshed()
	require.NoError(t, err)
	out, err := exec.Command(program, "version").CombinedOutput()
	require.NoError(t, err)
	assert.Contains(t, string(out), "cowshed")
}

func TestMain(m *testing.M) {
	code := m.Run()
	if err := RemoveCowshed(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}
