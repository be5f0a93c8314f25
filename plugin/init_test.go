package plugin

import (
	"encoding/json"
	"testing"

	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestInitMessages: the messages of engines of several versions.
func TestInitMessages(t *testing.T) {
	maps := []user.IDMap{{ID: 0, ParentID: 231072, Count: 65536}}
	for text, want := range map[string]InitRequest{
		`{"Home":"/h","Opts":null}`:                                  {Home: "/h"},
		`{"Home":"/h","Opts":null,"UIDMaps":null,"GIDMaps":null}`:    {Home: "/h"},
		`{"Home":"/h","Opts":["a=b","c"],"UIDMaps":[],"GIDMaps":[]}`: {Home: "/h", Options: []string{"a=b", "c"}},
		`{"Home":"/h","Opts":[],"UIDMaps":[{"container_id":0,"host_id":231072,"size":65536}],"GIDMaps":[{"container_id":0,"host_id":231072,"size":65536}]}`: {
			Home: "/h", Options: []string{}, UIDMaps: maps, GIDMaps: maps,
		},
	} {
		var got InitRequest
		require.NoError(t, json.Unmarshal([]byte(text), &got), text)
		assert.Equal(t, want, got, text)
		assert.Equal(t, len(want.UIDMaps) == 0, got.IDMap().Empty(), text)
	}
}

// FuzzInitRequest: an accepted request is written as it was read, and maps only existing ids.
func FuzzInitRequest(f *testing.F) {
	f.Add(`{"Home":"/h","Opts":["a=b"],"UIDMaps":[{"container_id":0,"host_id":231072,"size":65536}],"GIDMaps":null}`)
	f.Add(`{"Home":"/h","UIDMaps":[{"size":4294967295}]}`)
	f.Add(`{"home":"","HOME":"x","GIDMaps":[{"host_id":-1,"size":9223372036854775807}]}`)
	f.Add(`null`)
	f.Fuzz(func(t *testing.T, text string) {
		var request InitRequest
		if json.Unmarshal([]byte(text), &request) != nil {
			return
		}
		for _, maps := range [][]user.IDMap{request.UIDMaps, request.GIDMaps} {
			for _, m := range maps {
				assert.True(t, m.Count > 0 && m.ID >= 0 && m.ParentID >= 0 && m.ID+m.Count < 1<<32 && m.ParentID+m.Count < 1<<32, "%+v", m)
			}
		}
		written, err := json.Marshal(request)
		require.NoError(t, err)
		var again InitRequest
		require.NoError(t, json.Unmarshal(written, &again))
		assert.Equal(t, request, again)
	})
}
