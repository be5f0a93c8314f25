package stream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCount(t *testing.T) {
	var n int64
	add := func(more int64) { n += more }
	text, err := io.ReadAll(CountReads(iotest.OneByteReader(strings.NewReader("hello")), add))
	require.NoError(t, err)
	assert.Equal(t, "hello", string(text))
	assert.EqualValues(t, 5, n)

	var out bytes.Buffer
	_, err = io.WriteString(CountWrites(&out, add), "world")
	require.NoError(t, err)
	assert.Equal(t, "world", out.String())
	assert.EqualValues(t, 10, n)
}

func TestUntil(t *testing.T) {
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	var out bytes.Buffer
	r, w := ReadUntil(ctx, strings.NewReader("hello")), WriteUntil(ctx, &out)
	_, err := io.CopyN(w, r, 2)
	require.NoError(t, err)
	cancel(why)
	_, err = r.Read(make([]byte, 1))
	require.ErrorIs(t, err, why)
	_, err = w.Write([]byte("x"))
	require.ErrorIs(t, err, why)
	assert.Equal(t, "he", out.String())
}
