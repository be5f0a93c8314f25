package daemons

import "testing"

// The tests in this file take Debian's engine on Cowshed on ZFS through the same as the others do on btrfs.

func inDebianOnZFS(t *testing.T, test engineTest) {
	t.Helper()
	inEachOn(t, onZFS(), []engine{{"debian-cowshed", "32m", onPlugin()}}, test)
}

// TestDockerZFS is TestDocker.
func TestDockerZFS(t *testing.T) { inDebianOnZFS(t, liveInEngine) }

// TestDockerLimitZFS is TestDockerLimit.
func TestDockerLimitZFS(t *testing.T) { inDebianOnZFS(t, writeToLimit) }

// TestDockerBuildZFS is TestDockerBuild.
func TestDockerBuildZFS(t *testing.T) { inDebianOnZFS(t, buildAtOnce) }

// TestDockerRestartZFS is TestDockerRestart.
func TestDockerRestartZFS(t *testing.T) { inDebianOnZFS(t, restartDaemons) }
