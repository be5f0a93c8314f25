package daemon

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
)

// empty is a backend without volumes.
type empty struct{ cowcommon.Backend }

func (empty) Volumes(context.Context) iter.Seq2[cowcommon.Volume, error] {
	return func(func(cowcommon.Volume, error) bool) {}
}

// retaining keeps the data of two removed volumes.
type retaining struct{ empty }

func (retaining) Retained(context.Context) (cowcommon.Retained, error) {
	return cowcommon.Retained{Volumes: 2, Bytes: 4096}, nil
}

// leaving has left calls of the kernel to themselves, and cannot count its volumes.
type leaving struct{ cowcommon.Backend }

func (leaving) Left() int { return 3 }

func (leaving) Volumes(context.Context) iter.Seq2[cowcommon.Volume, error] {
	return func(yield func(cowcommon.Volume, error) bool) { yield(cowcommon.Volume{}, errors.New("suspended")) }
}

// TestRetained: there are metrics of removed volumes whose data is kept, if the backend keeps data. There is a metric of
// calls that do not end, also while nothing else can be asked.
func TestRetained(t *testing.T) {
	for name, test := range map[string]struct {
		backend cowcommon.Backend
		want    map[string]float64
	}{
		"keeps data": {retaining{}, map[string]float64{"cowshed_volumes_removed": 2, "cowshed_volumes_removed_bytes": 4096}},
		"keeps none": {empty{}, map[string]float64{}},
		"left calls": {leaving{}, map[string]float64{"cowshed_kernel_calls_left": 3}},
	} {
		t.Run(name, func(t *testing.T) {
			registry := prometheus.NewRegistry()
			registry.MustRegister(newCollector([]source{{
				service:  snapshotsService,
				compared: func() cowcommon.CompareStats { return cowcommon.CompareStats{} },
				use:      func(f func(ctx context.Context, b cowcommon.Backend)) { f(t.Context(), test.backend) },
			}}, t.TempDir(), slog.New(slog.DiscardHandler)))
			families, err := registry.Gather()
			require.NoError(t, err)
			got := map[string]float64{}
			for _, family := range families {
				switch name := family.GetName(); name {
				case "cowshed_volumes_removed", "cowshed_volumes_removed_bytes", "cowshed_kernel_calls_left":
					got[name] = family.GetMetric()[0].GetGauge().GetValue()
				}
			}
			assert.Equal(t, test.want, got)
		})
	}
}
