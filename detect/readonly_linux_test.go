package detect

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestComplaintIn(t *testing.T) {
	const (
		mounted = "BTRFS info (device loop1): first mount of filesystem 22130f08-9ff1-467e-9d5b-46768198dd28"
		aborted = "BTRFS error (device loop1 state A): Transaction aborted (error -5)"
		failed  = "BTRFS: error (device loop1 state A) in __btrfs_free_extent:3233: errno=-5 IO failure"
		forced  = "BTRFS info (device loop1 state EA): forced readonly"
		other   = "BTRFS error (device loop11): parent transid verify failed"
	)
	for name, test := range map[string]struct {
		lines []string
		want  string
	}{
		"aborted":                 {[]string{mounted, other, aborted, failed, forced}, aborted},
		"the first line is gone":  {[]string{failed, forced}, failed},
		"mounted anew":            {[]string{mounted, aborted, forced, mounted}, ""},
		"a line is left out":      {[]string{mounted, aborted}, aborted},
		"an error, and no more":   {[]string{mounted, "BTRFS error (device loop1): csum failed"}, ""},
		"another device":          {[]string{other}, ""},
		"another filesystem":      {[]string{"EXT4-fs error (device loop1): x", "EXT4-fs info (device loop1): forced readonly"}, ""},
		"nothing":                 {nil, ""},
		"lines that say nothing ": {[]string{"", "): ", "BTRFS", ") in "}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, test.want, complaintIn(test.lines, "btrfs", "loop1"))
		})
	}
}

func TestCountedErrors(t *testing.T) {
	assert.Empty(t, countedErrors("write_errs 0\nread_errs 0\n"))
	assert.Equal(t, "write_errs 3, flush_errs 1", countedErrors("write_errs 3\nread_errs 0\nflush_errs 1\n"))
}
