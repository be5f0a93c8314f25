package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestPercentile(t *testing.T) {
	var times []time.Duration
	for i := range 200 {
		times = append(times, time.Duration(200-i))
	}
	assert.EqualValues(t, 198, percentile(times, 99))
	assert.EqualValues(t, 100, percentile(times, 50))
	assert.EqualValues(t, 7, percentile([]time.Duration{7}, 99))
	assert.Zero(t, percentile(nil, 99))
}

func TestLiveReport(t *testing.T) {
	const ms = time.Millisecond
	l := &liveRun{files: 50_000, all: true, sent: 120, bare: 100, heap: 1000, samples: map[string]samples{
		ofCowshed:  {opFork: {6 * ms}, opForkFew: {6 * ms}, opForkMany: {8 * ms}, opAdoptCopy: {400 * ms}},
		ofKernel:   {opFork: {5 * ms}},
		ofWorktree: {opAdoptCopy: {900 * ms}},
	}}
	var out bytes.Buffer
	(&report{}).writeLive(&out, []*liveRun{l})
	for _, line := range []string{
		"### A layer of 50,000 files\n",
		"| fork of a running layer | 6.00 ms (6.00 ms) | 5.00 ms (5.00 ms) | 1.20× |\n",
		"| fork of a running layer | median at most 5.00 ms | 6.00 ms | **not met** |\n",
		"| fork of a running layer | 99th percentile at most 15.0 ms | 6.00 ms | met |\n",
		"| fork of a running layer | at most 1.3× the bare calls | 1.20× | met |\n",
		"| fork beside many forks | at most 1.5× fork beside 10 forks | 1.33× | met |\n",
		"| adopt a git work tree of 20,000 files, by reflink | 400 ms (400 ms) | – | 900 ms (900 ms) | – | – |\n",
		"| incremental send of 3 changes | at most 1.1× the bytes of the bare stream | 1.20× | **not met** |\n",
		"| each of 1,000 forks that are not used | at most 2048 bytes of memory | 1000 bytes | met |\n",
	} {
		assert.Contains(t, out.String(), line)
	}
	assert.NotContains(t, out.String(), "| snapshot |", "it was not measured")
}
