// Package graphtest checks that a driver keeps the contracts of package graphdriver, and measures it.
//
// A driver's tests describe the driver in a [Config] and call [Run]:
//
//	func TestDriver(t *testing.T) {
//		graphtest.Run(t, graphtest.Config{
//			New: func(t testing.TB) graphdriver.Driver {
//				d, err := btrfs.Init(filepath.Join(t.TempDir(), "btrfs"), nil, user.IdentityMapping{})
//				require.NoError(t, err)
//				t.Cleanup(func() { assert.NoError(t, d.Cleanup()) })
//				return d
//			},
//			Quota: true,
//		})
//	}
//
// A driver declares optional functions in its Config, and Run tests them. It tests that the driver refuses the
// others, if that can be tested, or else names them in its log. No test skips.
//
// The tests make device nodes, foreign owners and file capabilities, and so need root. They watch the goroutines,
// descriptors and mounts of the process and change its umask: nothing else may run in parallel. They need Linux;
// elsewhere the package is empty.
package graphtest
