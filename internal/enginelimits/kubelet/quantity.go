package kubelet

import (
	"math/big"
	"regexp"
	"strconv"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// quantity is the form of numbers in Kubernetes: 128974848, 129e6, 129M, 123Mi.
var quantity = regexp.MustCompile(`^\+?([0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:([numkMGTPE]?)|([KMGTPE])i|[eE]([+-]?[0-9]{1,2}))$`)

// decimal are the powers of ten of suffixes, and binary those of 1024.
var (
	decimal = map[string]int{"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
	binary  = map[string]uint{"K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
)

// parseQuantity returns a quantity in bytes, rounded up as Kubernetes does. Returns errdefs.ErrInvalidArgument if it is none, or
// above 2^63-1.
func parseQuantity(s string) (uint64, error) {
	invalid := fault.New(errdefs.ErrInvalidArgument, "%.80q is no quantity of Kubernetes below 8Ei", s)
	parts := quantity.FindStringSubmatch(s)
	if parts == nil {
		return 0, invalid
	}
	number, ok := new(big.Rat).SetString(parts[1])
	if !ok {
		return 0, invalid
	}
	power := decimal[parts[2]]
	if parts[4] != "" {
		var err error
		if power, err = strconv.Atoi(parts[4]); err != nil {
			return 0, invalid
		}
	}
	factor := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(power, -power))), nil)
	if parts[3] != "" {
		factor = new(big.Int).Lsh(big.NewInt(1), 10*binary[parts[3]])
	}
	if scale := new(big.Rat).SetInt(factor); power < 0 {
		number.Quo(number, scale)
	} else {
		number.Mul(number, scale)
	}
	bytes, rest := new(big.Int).QuoRem(number.Num(), number.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		bytes.Add(bytes, big.NewInt(1))
	}
	if !bytes.IsInt64() {
		return 0, invalid
	}
	return bytes.Uint64(), nil
}
