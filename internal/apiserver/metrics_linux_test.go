package apiserver

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/internal/testfs"
)

// counted has the counters and gauges of a server, and the counts of its histograms, by name and values of labels.
func (s *served) counted() map[string]float64 {
	s.t.Helper()
	registry := prometheus.NewRegistry()
	require.NoError(s.t, registry.Register(s.server))
	families, err := registry.Gather()
	require.NoError(s.t, err)
	values := make(map[string]float64)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			name := []string{strings.TrimPrefix(family.GetName(), "cowshed_api_")}
			for _, label := range m.GetLabel() {
				name = append(name, label.GetValue())
			}
			values[strings.Join(name, " ")] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return values
}

// TestMetrics: requests are counted by route, whatever names, paths and methods clients send, and refusals by gate.
func TestMetrics(t *testing.T) {
	s := newServed(t, patient).newBase()
	for _, layer := range []string{"base", "docker:web"} {
		s.ok("GET", at("/layers/%s", layer), nil, nil)
		s.ok("POST", at("/layers/%s/snapshots", layer), api.NewSnapshot{}, nil)
	}
	for _, layer := range []string{"a", "b", "c"} {
		s.fails(api.KindNotFound, "GET", "/v1/layers/"+layer, nil)
		s.fails(api.KindNotFound, "GET", "/"+layer, nil)
		s.fails(api.KindMethodNotAllowed, "PATCH", "/v1/layers/"+layer, nil)
		s.fails(api.KindMethodNotAllowed, strings.ToUpper(layer), "/v1/layers/"+layer, nil)
	}
	s.as(mallory).fails(api.KindPermissionDenied, "GET", "/v1/layers/base", nil)
	s.write(s.stores.store, "base", "large", strings.Repeat("cowshed ", 1<<20))
	giveUp := s.stall(alice, "/v1/layers/base/export")
	assert.InDelta(t, 1, s.counted()["requests_running"], 0)
	s.fails(api.KindTooManyRequests, "GET", "/v1/layers/base/export", nil)
	giveUp()
	want := map[string]float64{
		"requests_total GET /v1/layers/{layer} 2xx":            2,
		"requests_total GET /v1/layers/{layer} 4xx":            3,
		"requests_total POST /v1/layers/{layer}/snapshots 2xx": 2,
		"requests_total GET none 4xx":                          4,
		"requests_total other /v1/layers/{layer} 4xx":          6,
		"requests_total GET /v1/layers/{layer}/export 4xx":     1,
		"requests_total GET /v1/layers/{layer}/export cut":     1,

		"request_duration_seconds GET /v1/layers/{layer}":            5,
		"request_duration_seconds POST /v1/layers/{layer}/snapshots": 2,
		"request_duration_seconds GET none":                          4,
		"request_duration_seconds other /v1/layers/{layer}":          6,
		"request_duration_seconds GET /v1/layers/{layer}/export":     2,
		"requests_running": 0,
	}
	for _, gate := range []string{"connections", "requests", "exports", "walks"} {
		want["refusals_total "+gate+" too_many_requests"], want["refusals_total "+gate+" unavailable"] = 0, 0
	}
	want["refusals_total exports too_many_requests"] = 1
	require.EventuallyWithT(t, func(c *assert.CollectT) { // a request ends after its client has the answer
		assert.Equal(c, want, s.counted())
	}, testfs.Patience, 10*time.Millisecond)
}

// TestRefusedConnections: connections that are too many are counted.
func TestRefusedConnections(t *testing.T) {
	s := newServed(t, patient).as(alice)
	for range connectionBounds.each {
		s.dial()
	}
	s.fails(api.KindTooManyRequests, http.MethodGet, "/v1/info", nil)
	assert.InDelta(t, 1, s.counted()["refusals_total connections too_many_requests"], 0)
}
