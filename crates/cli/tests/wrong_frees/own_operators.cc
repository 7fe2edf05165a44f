// Operators of the program's own, made of malloc and free. All is freed as it has to be.
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#ifdef ONLY_NEW // The delete of the library frees what is asked for by ours.
#else
void operator delete(void *p) noexcept { std::free(p); }
void operator delete[](void *p) noexcept { std::free(p); }
void operator delete(void *p, std::size_t) noexcept { std::free(p); }
void operator delete[](void *p, std::size_t) noexcept { std::free(p); }
#endif
void *operator new(std::size_t n) {
    void *p = std::malloc(n ? n : 1);
    if (!p) throw std::bad_alloc();
    return p;
}
// Nothing but a jump, where it is optimized.
void *operator new[](std::size_t n) { return std::malloc(n); }
void *operator new(std::size_t n, const std::nothrow_t &) noexcept { return std::malloc(n); }

struct Node {
    Node *next;
    std::string text;
};

int main() {
    Node *list = nullptr;
    for (int i = 0; i < 20; i++) list = new Node{list, std::string(40, 'x')};
    while (list) {
        Node *next = list->next;
        delete list;
        list = next;
    }
    std::vector<int> numbers;
    for (int i = 0; i < 1000; i++) numbers.push_back(i);
    delete[] new int[30];
    delete[] new std::string[3];
    delete new (std::nothrow) int;
    std::free(std::malloc(10));
}
