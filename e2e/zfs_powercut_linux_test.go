package e2e

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

// scripts/test-zfs.sh runs TestZFSWorkload in the test machine, and kills the machine in the middle of it. It starts
// the machine again with the same pool, and runs TestZFSAfterCut there with the workload's output. It does the same with
// shared roots.
const (
	workloadEnv = "COWSHED_TEST_WORKLOAD"    // set: TestZFSWorkload runs, until it is killed
	journalEnv  = "COWSHED_TEST_CUT_JOURNAL" // its output
	cutDataset  = "cut"                      // below the pool
	cutLimit    = 64 << 20                   // of limited layers, in bytes
	workers     = 3                          // of the workload
	beginMark   = "begin"                    // line: begin OPERATION ID
	doneMark    = "done"                     // line: done N OPERATION ID [DIGEST]
)

func cutSystem() system { return system{name: "zfs-cut", driver: "zfs"} }

// TestZFSWorkload is not a test: it is the workload that the power is cut in.
func TestZFSWorkload(t *testing.T) { zfsWorkload(t, cutSystem()) }

// TestZFSWorkloadShared is TestZFSWorkload with shared roots.
func TestZFSWorkloadShared(t *testing.T) { zfsWorkload(t, sharedSystems()[0]) }

func zfsWorkload(t *testing.T, s system) {
	t.Helper()
	if os.Getenv(workloadEnv) == "" {
		return
	}
	root := filepath.Join("/", testfs.Zpool(t), cutDataset)
	d, err := s.tryOpen(root, user.IdentityMapping{})
	require.NoError(t, err)
	var journal sync.Mutex
	done := 0
	run := func(operation, id string, f func() (digest string, err error)) {
		journal.Lock()
		fmt.Println(beginMark, operation, id)
		journal.Unlock()
		digest, err := f()
		if err != nil {
			panic(err) // in goroutines of a workload that is to be killed anyway
		}
		journal.Lock()
		done++
		fmt.Println(doneMark, done, operation, id, digest)
		journal.Unlock()
	}
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
			for i := 0; ; i++ {
				base, top := fmt.Sprintf("w%d-base-%d", worker, i), fmt.Sprintf("w%d-top-%d", worker, i)
				apply := func(id string) func() (string, error) {
					return func() (string, error) {
						content := make([]byte, 1+rng.IntN(1<<20))
						for j := range content {
							content[j] = byte(rng.Uint32())
						}
						_, err := d.ApplyDiff(id, "", bytes.NewReader(tarOf(content)))
						sum := sha256.Sum256(content)
						return hex.EncodeToString(sum[:]), err
					}
				}
				run("create", base, func() (string, error) { return "", d.Create(base, "", nil) })
				run("apply", base, apply(base))
				run("create", top, func() (string, error) {
					return "", d.CreateReadWrite(top, base, &graphdriver.CreateOpts{StorageOpt: map[string]string{"size": fmt.Sprint(cutLimit)}})
				})
				run("apply", top, apply(top))
				run("diff", top, func() (string, error) { _, err := d.Changes(top, base); return "", err })
				if i%3 == 1 { // the layers of the first round stay, for the cut to threaten
					run("remove", top, func() (string, error) { return "", d.Remove(top) })
					run("remove", base, func() (string, error) { return "", d.Remove(base) })
				}
			}
		})
	}
	wg.Wait()
}

// tarOf is a layer tar of one file, named after the layer that it is for.
func tarOf(content []byte) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	// Writing to memory fails only for headers that cannot be.
	_ = w.WriteHeader(&tar.Header{Name: "content", Mode: 0o644, Size: int64(len(content)), Format: tar.FormatPAX})
	_, _ = w.Write(content)
	_ = w.Close()
	return out.Bytes()
}

// cutLayer is the journal's record of a layer.
type cutLayer struct {
	created, applied, removing, removed bool
	digest                              string
}

func readJournal(t *testing.T, path string) (layers map[string]*cutLayer, operations int) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	layers = make(map[string]*cutLayer)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 || fields[0] != beginMark && fields[0] != doneMark {
			continue
		}
		done := fields[0] == doneMark
		if done {
			operations++
			if len(fields) < 4 {
				continue // cut off
			}
			fields = fields[1:]
		}
		operation, id := fields[1], fields[2]
		if layers[id] == nil {
			layers[id] = &cutLayer{}
		}
		l := layers[id]
		switch {
		case operation == "create" && done:
			l.created = true
		case operation == "apply" && done && len(fields) == 4 && len(fields[3]) == hex.EncodedLen(sha256.Size):
			l.applied, l.digest = true, fields[3]
		case operation == "remove":
			l.removing, l.removed = true, done
		}
	}
	require.NoError(t, lines.Err())
	return layers, operations
}

// TestZFSAfterCut finds, after the power was cut in the middle of TestZFSWorkload, all that was acknowledged,
// nothing half-made and nothing leaked.
func TestZFSAfterCut(t *testing.T) { zfsAfterCut(t, cutSystem()) }

// TestZFSAfterCutShared is TestZFSAfterCut with shared roots.
func TestZFSAfterCutShared(t *testing.T) { zfsAfterCut(t, sharedSystems()[0]) }

func zfsAfterCut(t *testing.T, s system) {
	t.Helper()
	path := os.Getenv(journalEnv)
	if path == "" {
		return
	}
	layers, operations := readJournal(t, path)
	require.Greater(t, operations, 10, "the workload did something")
	root := filepath.Join("/", testfs.Zpool(t), cutDataset)
	d := s.open(t, root, user.IdentityMapping{})
	there := make(map[string]cowcommon.Volume)
	for v, err := range d.Backend().Volumes(t.Context()) {
		require.NoError(t, err)
		there[v.Name] = v
		assert.Contains(t, layers, v.Name, "only layers of the workload are there")
	}
	checked := 0
	for id, l := range layers {
		v, exists := there[id]
		if !exists {
			assert.True(t, !l.created || l.removing, "%s was created and not removed", id)
			continue
		}
		assert.False(t, l.removed, "%s was removed", id)
		if strings.Contains(id, "-top-") {
			assert.EqualValues(t, cutLimit, v.Limit.Bytes, "%s has its limit", id)
		}
		if l.applied {
			content, err := os.ReadFile(get(t, d, id) + "/content")
			require.NoError(t, err)
			sum := sha256.Sum256(content)
			assert.Equal(t, l.digest, hex.EncodeToString(sum[:]), "%s has its content", id)
			require.NoError(t, d.Put(id))
			checked++
		}
	}
	t.Logf("%d operations, %d layers, %d of them compared", operations, len(there), checked)
	assert.Positive(t, checked)
	ids := layerIDs(t, d)
	assertNothingLeft(t, s, root, ids)
	for _, id := range slices.Backward(ids) { // a layer before one whose root it shares
		assert.NoError(t, d.Remove(id))
	}
	assertNothingLeft(t, s, root, nil)
}
