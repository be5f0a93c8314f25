//go:build linux

package graphtest

import (
	"os"
	"testing"

	"github.com/moby/sys/user"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

// Config describes the driver under test.
type Config struct {
	// New opens the driver on a fresh, empty root. It cleans up by t.Cleanup: the driver's own Cleanup, then
	// whatever the root needs. It is called once or several times in each test.
	New func(t testing.TB) graphdriver.Driver

	// Reopen ends the use of d, which came from New or Reopen, and opens its root again.
	// nil: not declared.
	Reopen func(t testing.TB, d graphdriver.Driver) graphdriver.Driver

	// NewIDMapped is New with an id map. nil: not declared.
	NewIDMapped func(t testing.TB, idMap user.IdentityMapping) graphdriver.Driver

	// NestedVolume makes a volume of the filesystem at the path dir within a layer, as systemd-nspawn or Docker in
	// Docker would. dir does not exist yet. nil: not declared.
	NestedVolume func(t testing.TB, dir string)

	// Quota: the option "size" is enforced, and counts the data that the layer adds to its parent.
	Quota bool

	// QuotaTotal: "size" counts the parent's data too. It goes with Quota.
	QuotaTotal bool

	// SealsParents: a layer that no one holds when a child is made from it can no longer be changed.
	SealsParents bool

	// SeesWrites: Changes lists a file whose bytes were written although nothing that lstat shows differs.
	SeesWrites bool

	// FrozenDiff: Changes, Diff and DiffSize show one moment of a layer that is being written to.
	FrozenDiff bool

	// DiffGetter: the driver is a graphdriver.DiffGetterDriver.
	DiffGetter bool

	// DiffPath: the driver is a graphdriver.DiffPathDriver.
	DiffPath bool

	// CustomImages: the driver is a graphdriver.CustomImageDriver.
	CustomImages bool

	// Overlay: the kernel's overlayfs shows a layer on its parent. Writing to a file of the parent gives that name a copy
	// of its own, so other hard links to it stay as they are.
	Overlay bool

	// ChainLength is how many layers are stacked on each other. 0: 125, as many as Docker stacks.
	ChainLength int
}

// Test is one test of the suite.
type Test struct {
	Name string
	run  func(t testing.TB, c Config)
}

// Run runs all tests of the suite, each as a subtest and with a driver of its own.
func Run(t *testing.T, c Config) {
	for _, name := range c.undeclared() {
		t.Logf("not declared, so not tested: %s", name)
	}
	for _, test := range Tests() {
		t.Run(test.Name, func(t *testing.T) { test.Run(t, c) })
	}
}

// Run runs the test, with drivers of its own, and fails it also if anything is left behind in the process.
// A test about something that the Config does not declare checks that it is refused, or does nothing.
func (test Test) Run(t testing.TB, c Config) {
	require.Zero(t, os.Geteuid(), "graphtest needs root")
	testfs.CheckLeaks(t)
	test.run(t, c)
}

// Tests are the tests of the suite in the order in which Run runs them, for callers that want only some.
func Tests() []Test {
	var all []Test
	for _, group := range [][]Test{
		createTests, idTests, holdTests, removeTests, contentTests, chainTests, changesTests, writesTests,
		frozenTests, applyTests, readerTests, getterTests, diffPathTests, optionTests, quotaTests, nestedTests, idMapTests,
		concurrencyTests, describeTests, reopenTests,
	} {
		all = append(all, group...)
	}
	return all
}

// undeclared names functions that the Config does not declare, and whose refusal cannot be tested.
func (c Config) undeclared() []string {
	var names []string
	for _, capability := range []struct {
		name     string
		declared bool
	}{
		{"Reopen", c.Reopen != nil},
		{"NewIDMapped", c.NewIDMapped != nil},
		{"NestedVolume", c.NestedVolume != nil},
		{"SealsParents", c.SealsParents},
		{"SeesWrites", c.SeesWrites},
		{"FrozenDiff", c.FrozenDiff},
	} {
		if !capability.declared {
			names = append(names, capability.name)
		}
	}
	return names
}

// subtestRunner is a testing.TB that is no *testing.T and has subtests.
type subtestRunner interface {
	RunSubtest(name string, f func(t testing.TB))
}

// subtest runs f as a subtest of t, or as a part of t where t has none.
func subtest(t testing.TB, name string, f func(t testing.TB)) {
	switch t := t.(type) {
	case *testing.T:
		t.Run(name, func(t *testing.T) { f(t) })
	case subtestRunner:
		t.RunSubtest(name, f)
	default:
		f(t)
	}
}
