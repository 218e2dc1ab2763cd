package storagetest

import "iter"

// All returns what a listing yields, up to its error.
func All[T any](listing iter.Seq2[T, error]) ([]T, error) {
	var all []T
	for one, err := range listing {
		if err != nil {
			return all, err
		}
		all = append(all, one)
	}
	return all, nil
}
